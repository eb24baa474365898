"""The processes of one run, as torchrun starts them: rank, world size, and what they exchange.

`rank`, `world_size` and `is_main` read torchrun's environment and import no torch, so that the command line can ask
them. The other functions talk over the process group; with a single process, or before the group exists, they return
their input unchanged.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def rank() -> int:
    """The number of this process among those of the run, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The number of this process among those on this machine, from 0; it chooses the GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """The number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """True in the one process that prints and writes files."""
    return rank() == 0


def is_initialized() -> bool:
    """True once the process group exists."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def barrier() -> None:
    """Wait until every process has arrived here."""
    if is_initialized():
        import torch.distributed as dist

        dist.barrier()


def sum_over_processes(values: "Tensor") -> "tuple[Tensor, int]":
    """The sum of `values` over the processes, and the number of processes. The input is not changed."""
    if not is_initialized():
        return values, 1
    import torch.distributed as dist

    values = values.clone()
    dist.all_reduce(values)
    return values, dist.get_world_size()


def mean_over_processes(count: "Tensor", floor: float = 1.0) -> "Tensor":
    """A normalizer averaged over the processes, at least `floor`; any shape, without gradient.

    With it, N processes give the same loss as one process with the whole batch, and a batch without objects stays
    finite.
    """
    total, processes = sum_over_processes(count.detach())
    return (total / processes if is_initialized() else total).clamp(min=floor)


def gather_rows(values: "Tensor") -> "tuple[Tensor, int]":
    """The rows (n, ...) of all processes in the order of their ranks, without gradient, and the index of this process's
    first row.

    n may differ between processes. Every process must call it.
    """
    values = values.detach()
    if not is_initialized():
        return values, 0
    import torch
    import torch.distributed as dist

    count = torch.tensor([len(values)], device=values.device)
    counts = [torch.zeros_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    sizes = [int(size) for size in counts]
    padded = values.new_zeros((max(sizes), *values.shape[1:]))
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    rows = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return rows, sum(sizes[: dist.get_rank()])


def broadcast_from_main(values: "Tensor") -> None:
    """Overwrite `values` in place by those of the main process."""
    if is_initialized():
        import torch.distributed as dist

        dist.broadcast(values, src=0)
