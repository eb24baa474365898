"""Distances between class scores and between distributions. Nothing is reduced unless a docstring says so."""

import torch
import torch.nn.functional as F
from torch import Tensor


def quality_focal(logits: Tensor, target_scores: Tensor, beta: float = 2.0) -> Tensor:
    """|sigmoid(logits) - target|^beta times binary cross-entropy, elementwise; any shape, targets in 0..1.

    With beta 2 it is the quality focal loss (GFL, arXiv:2006.04388). With beta 1 and the teacher's scores as targets it
    is CrossKD's class loss (arXiv:2306.11369). The gradient also flows through the factor |...|^beta. The minimum is 0,
    for equal scores.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, target_scores, reduction="none")
    return (logits.sigmoid() - target_scores).abs().pow(beta) * entropy


def softmax_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of the softmax distributions, times temperature squared; (..., K) logits to (...).

    In nats, summed over classes. The teacher is detached. Hinton et al., arXiv:1503.02531.
    """
    teacher_log_scores = (teacher.detach() / temperature).log_softmax(-1)
    student_log_scores = (student / temperature).log_softmax(-1)
    divergence = F.kl_div(student_log_scores, teacher_log_scores, reduction="none", log_target=True)
    return divergence.sum(-1) * temperature**2


def soft_cross_entropy(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """-sum over classes of w p_t log p_s; (..., K) logits to (...), in nats. Chen et al., NIPS 2017.

    weights: one weight w per class, (K,). None means 1.
    The weights are inside the sum. Therefore the minimum is not at p_s = p_t, but where p_s is w p_t scaled to sum 1.
    The teacher is detached.
    """
    target_scores = teacher.detach().softmax(-1)
    if weights is not None:
        target_scores = target_scores * weights
    return -(target_scores * student.log_softmax(-1)).sum(-1)


def edge_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL of each side's distance distribution, times temperature squared; (..., R) logits over R bins to (...).

    Summed over bins. Localization distillation, LD, arXiv:2102.12252. LD's code takes the mean over bins instead:
    divide by R to get its value.
    """
    return softmax_kl(student, teacher, temperature)


def decoupled_kl(
    student: Tensor, teacher: Tensor, labels: Tensor, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0
) -> Tensor:
    """Hinton's KL divided into two parts with separate weights; (N, K) logits to (N,). DKD, arXiv:2203.08679.

    alpha * KL of (label, all other classes) + beta * KL among the other classes, in nats times temperature squared.
    labels: (N,) in 0..K-1. With alpha 1 and beta 1 - p_label(teacher) the result equals `softmax_kl`. The teacher is
    detached. Raises ValueError if there are fewer than two classes.
    The probability of the other classes is computed as a sum of exponentials of logits, not as 1 - p. So the logarithm
    of 0 never occurs, even if a probability is close to 1.
    """
    if student.shape[-1] < 2:
        raise ValueError(f"decoupled_kl needs at least two classes, got {student.shape[-1]}")
    student_pair, student_others = _label_and_others(student / temperature, labels)
    teacher_pair, teacher_others = _label_and_others(teacher.detach() / temperature, labels)
    target = softmax_kl(student_pair, teacher_pair)
    others = softmax_kl(student_others, teacher_others)
    return (alpha * target + beta * others) * temperature**2


def _label_and_others(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Two sets of logits from (N, K) logits.

    (N, 2): the label, and all other classes together.
    (N, K - 1): each of the other classes.
    """
    is_label = F.one_hot(labels, logits.shape[-1]).bool()
    others = logits[~is_label].view(len(logits), logits.shape[-1] - 1)  # (N, K - 1)
    return torch.stack([logits[is_label], others.logsumexp(-1)], dim=-1), others


def relation_match(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, beta: float = 1.0, gamma: float = 1.0
) -> Tensor:
    """beta (1 - mean of r over rows) + gamma (1 - mean of r over classes), times temperature squared; to ().

    student, teacher: (N, K) logits; the teacher is detached. r is the Pearson correlation of the softmax scores: for
    each row over the K classes (beta), and for each class over the N rows (gamma). DIST, arXiv:2205.10536.
    With a single class or a single row there is no correlation: that part is 1 and has no gradient. No rows give 0.
    """
    if len(student) == 0:
        return student.sum()
    student_scores = (student / temperature).softmax(-1)
    teacher_scores = (teacher.detach() / temperature).softmax(-1)
    over_rows = _correlation(student_scores, teacher_scores, axis=1).mean()
    over_classes = _correlation(student_scores, teacher_scores, axis=0).mean()
    return (beta * (1 - over_rows) + gamma * (1 - over_classes)) * temperature**2


def _correlation(student: Tensor, teacher: Tensor, axis: int) -> Tensor:
    """Pearson correlation along the axis. 1e-8 is added to the product of the norms, as published."""
    student = student - student.mean(axis, keepdim=True)
    teacher = teacher - teacher.mean(axis, keepdim=True)
    return (student * teacher).sum(axis) / (student.norm(dim=axis) * teacher.norm(dim=axis) + 1e-8)
