"""Gradient accumulation: the micro-batches of one optimizer step, and what they exchange."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from detdistill.distributed import exchanging
from detdistill.errors import UserError
from detdistill.types import Batch, Targets


def check_accumulate(images: int, processes: int, accumulate: int) -> None:
    """Raises UserError unless the images of one step give micro-batches of equal size on every process."""
    if images % (processes * accumulate):
        shares = f"{accumulate} micro-batches" + (f" on each of {processes} processes" if processes > 1 else "")
        raise UserError(
            f"train.accumulate is {accumulate}, but {images} images per step can't be shared equally by {shares}; "
            f"choose a batch size that is a multiple of {processes * accumulate}, and not more than the images"
        )


def split(batch: Batch, targets: Targets, count: int) -> list[tuple[Batch, Targets]]:
    """`count` micro-batches of equal size, in order. They keep the padding of the batch."""
    if count == 1:
        return [(batch, targets)]
    check_accumulate(len(batch), 1, count)
    size = len(batch) // count
    parts = []
    for begin in range(0, len(batch), size):
        here = slice(begin, begin + size)
        part = replace(
            batch,
            images=batch.images[here],
            sizes=batch.sizes[here],
            originals=batch.originals[here],
            ids=batch.ids[here],
            names=batch.names[here],
        )
        parts.append((part, Targets(targets.boxes[here], targets.labels[here])))
    return parts


class MicroBatches:
    """The counts and rows that the micro-batches of one step exchange; a `distributed.Exchange`.

    A normalizer is a count over the whole large batch, so it must be known before the first backward pass. Therefore
    the micro-batches are first run without gradients (a rehearsal), in which every exchanged value is recorded. When
    all micro-batches have recorded a value, each gets the sum. Until then it gets its own.

    A value must not depend on the result of an earlier exchange, unless all micro-batches have recorded that one before
    (see `engine.step`).
    """

    def __init__(self, count: int) -> None:
        self.values: list[list[Tensor]] = [[] for _ in range(count)]
        self.current, self.calls = 0, 0

    @contextmanager
    def running(self, index: int) -> Iterator[None]:
        """Run micro-batch `index`. A value that it recorded in an earlier run stays."""
        self.current, self.calls = index, 0
        with exchanging(self):
            yield

    def add(self, values: Tensor) -> tuple[Tensor, int]:
        """See `distributed.Exchange`."""
        shared = self._record(values)
        return (values, 1) if shared is None else (torch.stack(shared).sum(0), len(shared))

    def gather(self, rows: Tensor) -> tuple[Tensor, int]:
        """See `distributed.Exchange`."""
        shared = self._record(rows)
        if shared is None:
            return rows, 0
        return torch.cat(shared), sum(len(part) for part in shared[: self.current])

    def check(self) -> None:
        """Raises RuntimeError unless all micro-batches have exchanged the same number of values."""
        counts = {len(recorded) for recorded in self.values}
        if len(counts) > 1:
            raise RuntimeError(
                f"micro-batches of one step exchanged {' and '.join(map(str, sorted(counts)))} values; a detector or "
                "method must call mean_over_processes and gather_rows equally often for every batch, or several "
                "processes would wait for each other without end"
            )

    def _record(self, values: Tensor) -> list[Tensor] | None:
        """Record a value of this micro-batch. Returns those of all micro-batches, or None if one is not known yet."""
        call, own = self.calls, self.values[self.current]
        self.calls += 1
        if call == len(own):
            own.append(values.detach().clone())
        if any(len(recorded) <= call for recorded in self.values):
            return None
        return [recorded[call] for recorded in self.values]


class Buffers:
    """The buffers of a module as they were when this object was made."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self.buffers = list(buffers)
        self.saved = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def restore(self) -> None:
        """Set the buffers back."""
        for buffer, saved in zip(self.buffers, self.saved, strict=True):
            buffer.copy_(saved)


def own_buffers(distillation: Any) -> list[Tensor]:
    """The buffers of a `Distillation` that do not belong to its student: those of methods and balances."""
    of_student = {id(buffer) for buffer in distillation.student.buffers()}
    return [buffer for buffer in distillation.buffers() if id(buffer) not in of_student]
