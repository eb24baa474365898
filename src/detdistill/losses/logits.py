"""Distances between class scores and between distributions. Nothing here is reduced but where a docstring says so."""

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


def edge_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Localisation distillation: KL of each side's distance distribution, (..., R) logits over R bins to (...), summed over bins, times
    temperature squared. LD, arXiv:2102.12252 (whose code takes the mean over bins: divide by R)."""
    return softmax_kl(student, teacher, temperature)
