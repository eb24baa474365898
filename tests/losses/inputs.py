"""Inputs of the golden numbers, computed instead of stored in a file."""

import math

import torch


def wave(shape: tuple[int, ...], step: float, phase: float, scale: float = 1.0) -> torch.Tensor:
    """scale * sin(step * i + phase) over the running index i, in double precision."""
    return (scale * torch.sin(step * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).view(shape)
