"""What the losses share: precision, shape checks and the weighted mean."""

import torch
from torch import Tensor

from detdistill.distributed import mean_over_processes


def at_least_single(values: Tensor) -> Tensor:
    """Convert half precision to single precision; single and double precision stay as they are.

    16 bits are too few for a sum over a million cells.
    """
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError if the two maps differ in shape, so that nothing is broadcast by accident."""
    if student.shape != teacher.shape:
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"student and teacher must be maps of one shape, got {shapes}")


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Sum of weights * values, divided by the sum of weights; both of the same shape, to ().

    The sum of weights is averaged over processes. It needs no lower limit of 1, because a mean never exceeds the
    largest value. Returns 0 if all weights are 0.
    """
    return (weights * values).sum() / mean_over_processes(weights.sum(), floor=1e-9)
