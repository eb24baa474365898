"""The processes of one run, as torchrun starts them: rank, world size, and what they exchange.

`rank`, `world_size` and `is_main` read torchrun's environment and import no torch, so that the command line can ask
them. The other functions talk over the process group; with a single process, or before the group exists, they return
their input unchanged.

With gradient accumulation, the micro-batches of one step exchange the same things as processes do (`exchanging`). So
whatever is equal over several processes is equal over several micro-batches.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Exchange(Protocol):
    """What the micro-batches of one step exchange. Every micro-batch must call the methods in the same order."""

    def add(self, values: "Tensor") -> "tuple[Tensor, int]":
        """The sum of `values` over the micro-batches, and their number."""
        ...

    def gather(self, rows: "Tensor") -> "tuple[Tensor, int]":
        """The rows (n, ...) of all micro-batches, and the index of the first row of this one."""
        ...


_exchange: Exchange | None = None


@contextmanager
def exchanging(exchange: Exchange | None) -> Iterator[None]:
    """Let the functions below also exchange with the other micro-batches of the step."""
    global _exchange
    before, _exchange = _exchange, exchange
    try:
        yield
    finally:
        _exchange = before


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
    """The sum of `values` over the processes and micro-batches, and their number. The input is not changed."""
    total, processes, micro_batches = _total(values)
    return total, processes * micro_batches


def mean_over_processes(count: "Tensor", floor: float = 1.0) -> "Tensor":
    """A normalizer averaged over the processes, at least `floor`; any shape, without gradient.

    With it, N processes give the same loss as one process with the whole batch, and a batch without objects stays
    finite. Of N micro-batches, each gets 1/N of the normalizer of the whole batch, so that the mean of their losses is
    that of the batch.
    """
    total, processes, micro_batches = _total(count.detach())
    return (total / processes).clamp(min=floor) / micro_batches


def _total(values: "Tensor") -> "tuple[Tensor, int, int]":
    """The sum over processes and micro-batches, the number of processes, and that of micro-batches."""
    processes = micro_batches = 1
    if is_initialized():
        import torch.distributed as dist

        values = values.clone()
        dist.all_reduce(values)
        processes = dist.get_world_size()
    if _exchange is not None:
        values, micro_batches = _exchange.add(values)
    return values, processes, micro_batches


def gather_rows(values: "Tensor") -> "tuple[Tensor, int]":
    """The rows (n, ...) of all processes in the order of their ranks, without gradient, and the index of this process's
    first row. With micro-batches, the rows of every micro-batch follow each other in this form.

    n may differ between processes. Every process must call it.
    """
    rows, begin = _gather_over_processes(values.detach())
    if _exchange is not None:
        rows, earlier = _exchange.gather(rows)
        begin += earlier
    return rows, begin


def _gather_over_processes(values: "Tensor") -> "tuple[Tensor, int]":
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
