"""How hard each part of the objective pulls at the student: norms of its gradient at the neck's output.

The neck is where the methods and the task meet. Its maps are no parameters, so that nothing is accumulated, no hook of
DistributedDataParallel fires, and the step that follows is the same to the bit. The values of two terms can't be compared, as one may be a
sum and the other a mean; their gradients at one place can.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detdistill.distributed import sum_over_processes


def neck_norms(parts: Mapping[str, Tensor], neck: Sequence[Tensor], scaler: Any | None = None) -> dict[str, float]:
    """Norm of each part's gradient, over all levels and images; the same on every process. A part that doesn't reach the neck has 0.

    parts: scalars (). neck: levels (B, C, H, W) of the same graph, which is kept. scaler: torch's GradScaler under fp16, or None; a gradient that
    overflows with its scale comes out infinite or NaN.

    A level that is made of another one (a P6 from P5) counts there too. Over P processes the objective is the mean of theirs, so that the norm
    is sqrt(sum of squares) / P: that of one process with all images.
    """
    levels = [level for level in neck if level.requires_grad]
    unit = torch.ones((), device=neck[0].device)
    seed = unit if scaler is None else scaler.scale(unit)
    norms = []
    with torch.autocast(neck[0].device.type, enabled=False):
        for part in parts.values():
            reached = part.requires_grad and levels
            gradients = (
                torch.autograd.grad(part.float(), levels, seed, retain_graph=True, allow_unused=True) if reached else ()
            )
            sizes = [torch.linalg.vector_norm(gradient.float()) for gradient in gradients if gradient is not None]
            norms.append(torch.stack([unit * 0, *sizes]).norm() / seed)
    squares, processes = sum_over_processes(torch.stack(norms).square())
    return dict(zip(parts, (squares.sqrt() / processes).tolist(), strict=True))


def sum_of(terms: Mapping[str, Tensor]) -> Tensor:
    """The plain sum (), in single precision."""
    return torch.stack([term.float() for term in terms.values()]).sum()


def shares(norms: Mapping[str, float]) -> dict[str, float]:
    """Each norm's share of their sum, 0..1; all 0 where there is no gradient."""
    total = sum(norms.values())
    return {name: norm / total if total else 0.0 for name, norm in norms.items()}
