"""What every reduction shares: precision and normalisers."""

import torch
import torch.distributed as dist
from torch import Tensor


def at_least_single(values: Tensor) -> Tensor:
    """Half precision to single, single and double as they are: sums over a million cells don't fit in 16 bits."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def mean_over_processes(count: Tensor, floor: float = 1.0) -> Tensor:
    """A normaliser () averaged over processes, at least `floor`: N processes then equal one big batch, and a batch without objects stays finite."""
    count = count.detach().clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp(min=floor)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Sum of weights * values over the sum of weights, that sum averaged over processes; same shapes, to (). A mean needs no floor of 1: it is
    bounded by the largest value, and 0 where all weights are."""
    return (weights * values).sum() / mean_over_processes(weights.sum(), floor=1e-9)
