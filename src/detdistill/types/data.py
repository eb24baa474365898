"""Inputs from a data set, the state of a run, and final detections."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

MULTIPLE = 32  # height and width of a batch are multiples of this


def padded_size(size: tuple[int, int], multiple: int = MULTIPLE) -> tuple[int, int]:
    """(height, width) rounded up to the multiple that batches are padded to."""
    return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple


@dataclass(frozen=True, eq=False)
class Batch:
    """Augmented images, not normalized. Every detector normalizes them itself.

    images: (B, 3, H, W) RGB, uint8 in 0..255 or float in 0..1, padded with zeros at the right and the bottom.
    sizes: (B, 2), the valid (height, width) of each image in the padded tensor.
    originals: (B, 2), the (height, width) of each image file. The ratio of `originals` to `sizes`, per axis, converts
        boxes to pixels of the image file.
    ids: (B,), the image ids of the data set. They stay on the CPU.
    names: the file names, for messages. It may be empty.
    """

    images: Tensor
    sizes: Tensor
    originals: Tensor
    ids: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        count = self.images.shape[0]
        if (
            self.images.ndim != 4
            or self.images.shape[1] != 3
            or self.sizes.shape != (count, 2)
            or any(part.shape[0] != count for part in (self.originals, self.ids))
            or (self.names and len(self.names) != count)
        ):
            raise ValueError(
                "a batch needs images (B, 3, H, W), sizes (B, 2), originals (B, 2), B ids and B names, "
                f"got images {tuple(self.images.shape)}, sizes {tuple(self.sizes.shape)}, "
                f"originals {tuple(self.originals.shape)}, {len(self.ids)} ids and {len(self.names)} names"
            )

    @classmethod
    def of(cls, images: Tensor) -> "Batch":
        """The batch of images (B, 3, H, W) without padding. They get the ids and names 0, 1, ..."""
        count, (height, width) = len(images), images.shape[-2:]
        sizes = torch.tensor([[height, width]], device=images.device).repeat(count, 1)
        return cls(images, sizes, sizes, torch.arange(count), tuple(str(index) for index in range(count)))

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch with images, sizes and originals on the device; the ids stay on the CPU."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            sizes=self.sizes.to(device, non_blocking=True),
            originals=self.originals.to(device, non_blocking=True),
        )


@dataclass(frozen=True, eq=False)
class Targets:
    """Ground truth of a batch, one entry per image.

    boxes: (G, 4) per image. G may be 0.
    labels: (G,) per image, integer class indices from 0 in the shared class order.
    """

    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        for boxes, labels in zip(self.boxes, self.labels, strict=True):
            if boxes.shape != (len(labels), 4) or labels.is_floating_point():
                raise ValueError(
                    "targets need boxes (G, 4) and integer labels (G,), "
                    f"got boxes {tuple(boxes.shape)} and {labels.dtype} labels {tuple(labels.shape)}"
                )

    @classmethod
    def empty(cls, batch: Batch) -> "Targets":
        """The targets of a batch without objects."""
        boxes = batch.sizes.new_zeros(0, 4, dtype=torch.float32)
        return cls((boxes,) * len(batch), (boxes.new_zeros(0, dtype=torch.int64),) * len(batch))

    def __len__(self) -> int:
        return len(self.boxes)

    def to(self, device: torch.device | str) -> "Targets":
        """The targets on the device."""
        return Targets(
            tuple(boxes.to(device, non_blocking=True) for boxes in self.boxes),
            tuple(labels.to(device, non_blocking=True) for labels in self.labels),
        )


@dataclass(frozen=True, eq=False)
class TrainState:
    """Where a call stands in a run.

    step: the current step, from 0.
    steps: the number of steps of the whole run, or None if the run has no end.
    ids: (B,), the image ids of the data set, or None.
    generator: for the random numbers of a method. None means torch's global generator, which `engine.fit` seeds again
        at each step.
    """

    step: int = 0
    steps: int | None = None
    ids: Tensor | None = None
    generator: torch.Generator | None = None

    @property
    def progress(self) -> float:
        """The completed share of the run, in 0..1. It is 0 if the run has no end."""
        return min(1.0, self.step / self.steps) if self.steps else 0.0


@dataclass(frozen=True, eq=False)
class Detections:
    """Final detections of one image, best first.

    boxes: (D, 4).
    scores: (D,), in 0..1.
    labels: (D,), integer class indices in the shared class order.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.boxes.shape != (len(self.scores), 4) or self.labels.shape != self.scores.shape:
            shapes = ", ".join(str(tuple(part.shape)) for part in (self.boxes, self.scores, self.labels))
            raise ValueError(f"detections need boxes (D, 4), scores (D,) and labels (D,), got {shapes}")
