"""What every reduction shares: precision and normalisers."""

import torch
from torch import Tensor

from detdistill.distributed import mean_over_processes


def at_least_single(values: Tensor) -> Tensor:
    """Half precision to single, single and double as they are: sums over a million cells don't fit in 16 bits."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Sum of weights * values over the sum of weights, that sum averaged over processes; same shapes, to (). A mean needs no floor of 1: it is
    bounded by the largest value, and 0 where all weights are."""
    return (weights * values).sum() / mean_over_processes(weights.sum(), floor=1e-9)
