"""Stops the run if a loss term or the gradient becomes NaN or infinite."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


class NotFiniteError(FloatingPointError):
    """A loss term or the gradient became NaN or infinite. The message names step, term and the images of the batch."""


@dataclass(frozen=True)
class Reading:
    """The values of one step during their copy to the CPU. arrived: CUDA event after the copy, or None on the CPU."""

    step: int
    images: tuple[str, ...]
    names: tuple[str, ...]
    values: Tensor
    arrived: torch.cuda.Event | None


class Watch:
    """Checks the values of every step. On the CPU it does so before the optimizer's step, so that no NaN gets into
    the weights.

    On CUDA, reading a value makes the host wait for the GPU. So the values of a step are copied asynchronously and read
    while the next step is computed. At that time one bad step may already have changed the weights. But `settle` is
    called before every checkpoint and every logged line, so bad weights are never saved.
    """

    def __init__(self, exempt: Collection[str] = ()) -> None:
        """exempt: values that may overflow, such as the gradient under fp16, whose scaler then skips the step."""
        self.exempt = exempt
        self.pending: Reading | None = None
        self.latest: dict[str, float] = {}

    def look(self, step: int, images: tuple[str, ...], values: Mapping[str, Tensor]) -> None:
        """Check scalars of step `step`, by name. Raises NotFiniteError: for this step on the CPU, for the previous one
        on CUDA.
        """
        before, self.pending = self.pending, _send(step, images, values)
        if before is not None:
            self._read(before)
        if self.pending.arrived is None:
            self.settle()

    def settle(self) -> dict[str, float]:
        """The checked values of the latest step, by name. Raises NotFiniteError if one is NaN or infinite."""
        if self.pending is not None:
            reading, self.pending = self.pending, None
            self._read(reading)
        return self.latest

    def _read(self, reading: Reading) -> None:
        if reading.arrived is not None:
            reading.arrived.synchronize()
        self.latest = dict(zip(reading.names, reading.values.tolist(), strict=True))
        bad = [name for name, value in self.latest.items() if not math.isfinite(value) and name not in self.exempt]
        if bad:
            values = ", ".join(f"{name} is {self.latest[name]}" for name in bad)
            raise NotFiniteError(
                f"step {reading.step}: {values}; the batch was {', '.join(reading.images)}. "
                "Try a lower --lr or a longer --train.warmup_steps, and check these images"
            )


def _send(step: int, images: tuple[str, ...], values: Mapping[str, Tensor]) -> Reading:
    """Start the copy of the values to the CPU."""
    stacked = torch.stack([value.detach().float() for value in values.values()])
    if stacked.device.type != "cuda":
        return Reading(step, images, tuple(values), stacked.cpu(), None)
    copy = torch.empty(stacked.shape, pin_memory=True).copy_(stacked, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return Reading(step, images, tuple(values), copy, arrived)
