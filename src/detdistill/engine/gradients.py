"""Norms of gradients at the output of the student's neck: the effect of each part of the objective on the student.

The gradients of the methods and of the task both pass through the neck. Its maps are not parameters, so a measurement
accumulates no gradient and triggers no hook of DistributedDataParallel. The training step is bit-identical with and
without a measurement. The values of two terms can't be compared, because one may be a sum and the other a mean. Their
gradients at the same maps can be compared.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detdistill.distributed import sum_over_processes


def neck_norms(parts: Mapping[str, Tensor], neck: Sequence[Tensor], scaler: Any | None = None) -> dict[str, float]:
    """The norm of each part's gradient over all levels and images, the same on every process; 0 if it does not reach
    the neck.

    parts: scalars. neck: levels (B, C, H, W) of the same graph, which is kept. scaler: torch's GradScaler under fp16,
    or None; the norm of a gradient that overflows at its scale is infinite or NaN.

    If a level is computed from another level (P6 from P5), its gradient is included at both levels. With P processes
    the objective is the mean of their objectives. So the norm is sqrt(sum of squares) / P, as for one process with all
    images.
    """
    levels = [level for level in neck if level.requires_grad]
    one = torch.ones((), device=neck[0].device)
    seed = one if scaler is None else scaler.scale(one)
    norms = []
    with torch.autocast(neck[0].device.type, enabled=False):
        for part in parts.values():
            gradients: Sequence[Tensor | None] = ()
            if part.requires_grad and levels:
                gradients = torch.autograd.grad(part.float(), levels, seed, retain_graph=True, allow_unused=True)
            sizes = [torch.linalg.vector_norm(gradient.float()) for gradient in gradients if gradient is not None]
            norms.append(torch.stack([one * 0, *sizes]).norm() / seed)
    squares, processes = sum_over_processes(torch.stack(norms).square())
    return dict(zip(parts, (squares.sqrt() / processes).tolist(), strict=True))


def sum_of(terms: Mapping[str, Tensor]) -> Tensor:
    """The objective: the plain sum of the terms, a scalar in single precision."""
    return torch.stack([term.float() for term in terms.values()]).sum()


def shares(norms: Mapping[str, float]) -> dict[str, float]:
    """Each norm's share of their sum, 0..1; all 0 if there is no gradient."""
    total = sum(norms.values())
    return {name: norm / total if total else 0.0 for name, norm in norms.items()}
