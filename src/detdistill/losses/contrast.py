"""Noise-contrastive estimation against a memory of vectors, as CRD uses it (arXiv:1910.10699)."""

import torch
from torch import Tensor

EPSILON = 1e-7  # added to the denominators, as published


def contrast_scores(vectors: Tensor, bank: Tensor, index: Tensor, temperature: float = 0.07) -> Tensor:
    """exp(<bank[index], vector> / temperature): vectors (n, D), bank (M, D), index (n, K + 1) into the bank, to (n, K + 1).

    No gradient to the bank. All M products are taken and the asked ones picked: (n, M) numbers in place of n K vectors.
    """
    products = vectors @ bank.detach().t() / temperature
    return products.gather(1, index).exp()


def noise_contrast(scores: Tensor, population: int) -> Tensor:
    """-log(x_0 / (x_0 + m/M)) - sum over k of log((m/M) / (x_k + m/M)), (n, m + 1) to (n,): the cost of telling the first column from the others.

    scores: positive, of the mean 1 / M; population: M, how many the m negatives are drawn from. Summed over negatives, not over rows.
    """
    noise = (scores.shape[1] - 1) / population
    kept = scores[:, 0] / (scores[:, 0] + noise + EPSILON)
    refused = noise / (scores[:, 1:] + noise + EPSILON)
    return -kept.log() - refused.log().sum(1)


def unit(vectors: Tensor) -> Tensor:
    """Vectors (..., D) divided by their length; without a floor, as published."""
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
