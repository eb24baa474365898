"""What comes from a data set, and what goes back to it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Augmented images as they are; every detector normalises them for itself.

    images (B, 3, H, W): RGB, uint8 in 0..255 or float in 0..1, zero-padded at the right and the bottom.
    sizes (B, 2): valid (height, width) of each image in the padded tensor.
    originals (B, 2): (height, width) of the image file; boxes go back to it by the ratio of the two sizes.
    ids (B,): the data set's image ids, which stay on the CPU. names: file names, for messages.
    """

    images: Tensor
    sizes: Tensor
    originals: Tensor
    ids: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        count = len(self.images)
        if (
            self.images.ndim != 4
            or self.images.shape[1] != 3
            or self.sizes.shape != (count, 2)
            or any(len(part) != count for part in (self.sizes, self.originals, self.ids, self.names))
        ):
            raise ValueError(
                f"a batch of {tuple(self.images.shape)} needs (B, 3, H, W) images and B sizes, originals, ids and names"
            )

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "Batch":
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            sizes=self.sizes.to(device, non_blocking=True),
            originals=self.originals.to(device, non_blocking=True),
        )


@dataclass(frozen=True, eq=False)
class Targets:
    """Ground truth of a batch: boxes (G, 4) and labels (G,), in the shared class order from 0, per image. G may be 0."""

    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        for boxes, labels in zip(self.boxes, self.labels, strict=True):
            if boxes.shape != (len(labels), 4) or labels.is_floating_point():
                raise ValueError(
                    f"targets need boxes (G, 4) and whole labels (G,), got {tuple(boxes.shape)} and {labels.dtype} {tuple(labels.shape)}"
                )

    def __len__(self) -> int:
        return len(self.boxes)

    def to(self, device: torch.device | str) -> "Targets":
        return Targets(
            tuple(boxes.to(device, non_blocking=True) for boxes in self.boxes),
            tuple(labels.to(device, non_blocking=True) for labels in self.labels),
        )


@dataclass(frozen=True, eq=False)
class TrainState:
    """Where in a run a call stands.

    step: from 0. steps: of the whole run, None where it has no end. ids (B,): the data set's image ids, or None. generator: for what a
    method draws; None: torch's own, which `engine.fit` seeds anew each step.
    """

    step: int = 0
    steps: int | None = None
    ids: Tensor | None = None
    generator: torch.Generator | None = None

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0..1; 0 where it has no end."""
        return min(1.0, self.step / self.steps) if self.steps else 0.0


@dataclass(frozen=True, eq=False)
class Detections:
    """Final detections of one image, best first: boxes (D, 4), scores (D,), labels (D,) in the shared class order."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.boxes.shape != (len(self.scores), 4) or self.labels.shape != self.scores.shape:
            shapes = ", ".join(str(tuple(part.shape)) for part in (self.boxes, self.scores, self.labels))
            raise ValueError(f"detections need boxes (D, 4), scores (D,) and labels (D,), got {shapes}")
