"""Noise-contrastive estimation with a memory bank of vectors, as in CRD (arXiv:1910.10699)."""

import torch
from torch import Tensor

EPSILON = 1e-7  # added to the denominators, as published


def contrast_scores(vectors: Tensor, bank: Tensor, index: Tensor, temperature: float = 0.07) -> Tensor:
    """exp(<bank[index], vector> / temperature), shape (n, K + 1).

    vectors: (n, D). bank: (M, D), detached. index: (n, K + 1) rows of the bank.
    All M products are computed and the indexed ones are picked. This stores n M numbers instead of n K vectors.
    """
    products = vectors @ bank.detach().t() / temperature  # (n, M)
    return products.gather(1, index).exp()


def noise_contrast(scores: Tensor, population: int) -> Tensor:
    """Noise-contrastive loss of column 0 (the positive) and the other m columns (negatives); (n, m + 1) to (n,).

    -log(x_0 / (x_0 + m/M)) - sum over k of log((m/M) / (x_k + m/M)), where M is `population`.
    scores: positive, with a mean of 1 / M. population: number of vectors that the negatives are drawn from.
    The loss is summed over the negatives, not over the rows.
    """
    noise = (scores.shape[1] - 1) / population
    positive = scores[:, 0] / (scores[:, 0] + noise + EPSILON)
    negatives = noise / (scores[:, 1:] + noise + EPSILON)
    return -positive.log() - negatives.log().sum(1)


def unit(vectors: Tensor) -> Tensor:
    """Vectors (..., D) divided by their length. The length has no lower limit, as published."""
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
