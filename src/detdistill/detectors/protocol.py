"""What every detector offers, ours or an adapted one."""

from typing import Protocol

from torch import nn

from detdistill.types import Batch, Detections, DetectorInfo, DetectorOutput, Need, Targets


class Detector(Protocol):
    """An `nn.Module` that also satisfies this. No flag changes a return type; train and eval mode only touch norms and dropout."""

    info: DetectorInfo

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        """One look at a batch. With targets the task losses and the assignment come too; without, it stops once `need` is met."""
        ...

    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        """Final detections of each image, best first, in pixels of the padded batch, clipped to the image's valid size."""
        ...

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Those of the body below the neck, which may learn at a rate of their own."""
        ...

    # What the engine uses of nn.Module.
    def state_dict(self) -> dict: ...
    def train(self, mode: bool = True) -> nn.Module: ...
