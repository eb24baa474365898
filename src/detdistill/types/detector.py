"""The protocol that every detector fulfills, whether it is native or adapted from another library."""

from collections.abc import Iterator
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from detdistill.types.data import Batch, Detections, Targets
from detdistill.types.info import DetectorInfo, Need
from detdistill.types.outputs import DetectorOutput


class Detector(Protocol):
    """An `nn.Module` with these members.

    Training mode and evaluation mode change norms and dropout only. They never change a return type.
    `detdistill.testing.check_detector` verifies a detector against this protocol.
    """

    info: DetectorInfo
    training: bool

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        """Run the detector on a batch and return the parts that `need` names.

        With targets, the output also holds the task losses, and each stage holds its assignment. Without targets, the
        detector stops as soon as the parts in `need` are computed.
        """
        ...

    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        """Final detections of each image, best first.

        Boxes are in pixels of the padded batch, clipped to the valid size of their image.
        """
        ...

    def backbone_parameters(self) -> list[nn.Parameter]:
        """The parameters below the neck. The optimizer may use another learning rate for them."""
        ...

    # The methods of nn.Module that the engine uses.
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...
    def buffers(self, recurse: bool = True) -> Iterator[Tensor]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Any, strict: bool = True) -> Any: ...
    def train(self, mode: bool = True) -> Self: ...
    def eval(self) -> Self: ...
    def to(self, device: torch.device | str) -> Self: ...
    def requires_grad_(self, requires_grad: bool = True) -> Self: ...
