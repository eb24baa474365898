"""Nothing that is not finite goes unseen: design rule 7."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


class NotFiniteError(FloatingPointError):
    """A loss term or the gradient became NaN or infinite. The message names step, term and the images of the batch."""


@dataclass(frozen=True)
class Sight:
    """The values of one step, on their way to the CPU."""

    step: int
    images: tuple[str, ...]
    names: tuple[str, ...]
    values: Tensor
    arrived: torch.cuda.Event | None


class Watch:
    """Looks at the values of every step. On the CPU before the optimizer's step, so that no weight takes a NaN.

    On CUDA reading a value makes the host wait for it and leaves the GPU idle after. So the values of a step are copied behind its back
    and read while the next one is computed. By then the weights may have taken one bad step; but `settle` comes before every
    checkpoint and every logged line, so nothing of it is ever saved.
    """

    def __init__(self, exempt: Collection[str] = ()) -> None:
        """exempt: values that may overflow, such as the gradient under fp16, whose scaler then skips the step."""
        self.exempt = exempt
        self.waiting: Sight | None = None
        self.latest: dict[str, float] = {}

    def look(self, step: int, images: tuple[str, ...], values: Mapping[str, Tensor]) -> None:
        """values: scalars of step `step`, by name. Raises NotFiniteError: of this step on the CPU, of the one before on CUDA."""
        before, self.waiting = self.waiting, _send(step, images, values)
        if before is not None:
            self._read(before)
        if self.waiting.arrived is None:
            self.settle()

    def settle(self) -> dict[str, float]:
        """The latest step's values, found finite. Raises NotFiniteError where they are not."""
        if self.waiting is not None:
            sight, self.waiting = self.waiting, None
            self._read(sight)
        return self.latest

    def _read(self, sight: Sight) -> None:
        if sight.arrived is not None:
            sight.arrived.synchronize()
        self.latest = dict(zip(sight.names, sight.values.tolist(), strict=True))
        bad = [name for name, value in self.latest.items() if not math.isfinite(value) and name not in self.exempt]
        if bad:
            what = ", ".join(f"{name} is {self.latest[name]}" for name in bad)
            raise NotFiniteError(
                f"step {sight.step}: {what}; the batch was {', '.join(sight.images)}. "
                "A lower --lr or a longer --train.warmup_steps often helps; else look at these images"
            )


def _send(step: int, images: tuple[str, ...], values: Mapping[str, Tensor]) -> Sight:
    together = torch.stack([value.detach().float() for value in values.values()])
    if together.device.type != "cuda":
        return Sight(step, images, tuple(values), together.cpu(), None)
    landing = torch.empty(together.shape, pin_memory=True).copy_(together, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return Sight(step, images, tuple(values), landing, arrived)
