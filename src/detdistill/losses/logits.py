"""Distances between class scores and between distributions. Nothing here is reduced but where a docstring says so."""

import torch
import torch.nn.functional as F
from torch import Tensor


def quality_focal(logits: Tensor, target_scores: Tensor, beta: float = 2.0) -> Tensor:
    """|sigmoid(logits) - target|^beta times binary cross-entropy, elementwise, any shape; targets in 0..1.

    Quality focal loss (GFL, arXiv:2006.04388, beta 2); with beta 1 and the teacher's scores as targets, CrossKD's (arXiv:2306.11369).
    The modulating factor carries gradient. Its minimum is 0, where the scores agree.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, target_scores, reduction="none")
    return (logits.sigmoid() - target_scores).abs().pow(beta) * entropy


def softmax_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of softmax distributions, (..., K) logits to (...), nats, summed over classes, times temperature squared.

    Hinton et al., arXiv:1503.02531. No gradient to the teacher.
    """
    target = (teacher.detach() / temperature).log_softmax(-1)
    guess = (student / temperature).log_softmax(-1)
    return F.kl_div(guess, target, reduction="none", log_target=True).sum(-1) * temperature**2


def soft_cross_entropy(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """-sum over classes of w p_t log p_s, (..., K) logits to (...), nats; weights (K,) of the classes, none: 1.

    Chen et al., NIPS 2017: the weights stand inside the sum, so the minimum is not at p_s = p_t but where p_s is w p_t brought to sum 1.
    No gradient to the teacher.
    """
    target = teacher.detach().softmax(-1)
    if weights is not None:
        target = target * weights
    return -(target * student.log_softmax(-1)).sum(-1)


def edge_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Localisation distillation: KL of each side's distance distribution, (..., R) logits over R bins to (...), summed over bins, times
    temperature squared. LD, arXiv:2102.12252 (whose code takes the mean over bins: divide by R)."""
    return softmax_kl(student, teacher, temperature)


def decoupled_kl(
    student: Tensor, teacher: Tensor, labels: Tensor, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0
) -> Tensor:
    """Hinton's KL in two parts of free weight, (N, K) logits and labels (N,) in 0..K-1 to (N,), nats times temperature squared:
    alpha KL of (label, all others) + beta KL among the others. DKD, arXiv:2203.08679; with alpha 1 and beta 1 - p_label(teacher) it is
    `softmax_kl`. No gradient to the teacher. Raises ValueError for fewer than two classes.

    The probability of the others is a sum of exponents of logits, not 1 - p, so that no logarithm of 0 is taken however sure a side is.
    """
    if student.shape[-1] < 2:
        raise ValueError(f"a label and others are needed, got {student.shape[-1]} class")
    mine, theirs = (
        _label_and_others(student / temperature, labels),
        _label_and_others(teacher.detach() / temperature, labels),
    )
    target = softmax_kl(mine[0], theirs[0])
    others = softmax_kl(mine[1], theirs[1])
    return (alpha * target + beta * others) * temperature**2


def _label_and_others(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, K) to those of the label and of all others together (N, 2), and to those of each other class (N, K - 1)."""
    own = F.one_hot(labels, logits.shape[-1]).bool()
    others = logits[~own].view(len(logits), logits.shape[-1] - 1)
    return torch.stack([logits[own], others.logsumexp(-1)], dim=-1), others


def relation_match(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, beta: float = 1.0, gamma: float = 1.0
) -> Tensor:
    """beta (1 - mean over rows of r) + gamma (1 - mean over classes of r), times temperature squared: (N, K) logits to (), r the correlation of
    the softmax scores along the row, or down the class over the N rows. DIST, arXiv:2205.10536. No gradient to the teacher.

    Along a single class, or down a single row, nothing correlates: 1 without a gradient. No rows give 0.
    """
    if len(student) == 0:
        return student.sum()
    guess, target = (student / temperature).softmax(-1), (teacher.detach() / temperature).softmax(-1)
    along, down = (_correlation(guess, target, axis).mean() for axis in (1, 0))
    return (beta * (1 - along) + gamma * (1 - down)) * temperature**2


def _correlation(student: Tensor, teacher: Tensor, axis: int) -> Tensor:
    """Pearson's r along the axis; 1e-8 is added to the product of the norms, as published."""
    student, teacher = (values - values.mean(axis, keepdim=True) for values in (student, teacher))
    return (student * teacher).sum(axis) / (student.norm(dim=axis) * teacher.norm(dim=axis) + 1e-8)
