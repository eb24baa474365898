"""What every detector offers, our own or an adapted one."""

from collections.abc import Iterator
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from detdistill.types.data import Batch, Detections, Targets
from detdistill.types.info import DetectorInfo, Need
from detdistill.types.outputs import DetectorOutput


class Detector(Protocol):
    """An `nn.Module` with these members. No flag changes a return type: train and eval mode affect norms and dropout only."""

    info: DetectorInfo
    training: bool

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        """Run the detector on a batch. With targets, the output also holds task losses and the assignment; without targets, the
        detector stops once `need` is met."""
        ...

    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        """Final detections of each image, best first, in pixels of the padded batch, clipped to the image's valid size."""
        ...

    def backbone_parameters(self) -> list[nn.Parameter]:
        """The parameters below the neck, which may have a learning rate of their own."""
        ...

    # What the engine uses of nn.Module.
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...
    def buffers(self, recurse: bool = True) -> Iterator[Tensor]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Any, strict: bool = True) -> Any: ...
    def train(self, mode: bool = True) -> Self: ...
    def eval(self) -> Self: ...
    def to(self, device: torch.device | str) -> Self: ...
    def requires_grad_(self, requires_grad: bool = True) -> Self: ...
