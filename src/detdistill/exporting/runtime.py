"""Exported files as detectors: the same `detect` as a detector of this package, computed by the file's own runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detdistill.errors import UserError
from detdistill.exporting.sessions import OPENERS
from detdistill.geometry import extents
from detdistill.types import Batch, Detections, DetectorInfo


def is_exported(path: str | Path) -> bool:
    """True if the path has the suffix of an exported file."""
    return Path(path).suffix.lower() in OPENERS


class ExportedDetector(nn.Module):
    """An exported file as a detector; see `types.Detector`. It detects, and does nothing else.

    Every image is given to the file without the padding of its batch, as a program that uses the file would do.
    threads: see `Session`. Raises UserError if there is no such file, or if it can't be loaded.
    """

    def __init__(self, path: Path, threads: int = 0):
        super().__init__()
        if not path.is_file():
            raise UserError(f"--model {path}: there is no such file")
        self.path = path
        self.session = OPENERS[path.suffix.lower()](path, threads)
        self.card = self.session.card
        self.info = DetectorInfo(
            kind=self.card.head, classes=self.card.classes, strides=(), channels={}, activation="sigmoid"
        )

    def backbone_parameters(self) -> list[nn.Parameter]:
        """None: the weights are inside the file."""
        return []

    def observe(self, *_: Any, **__: Any) -> Any:
        """Raises UserError: an exported file has no features and no losses."""
        raise UserError(f"{self.path}: an exported file can only detect; use the run folder that it was exported from")

    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        """See `types.Detector`. Images of one size go through the file together."""
        sizes = [(height, width) for height, width in batch.sizes.tolist()]
        found: dict[int, Detections] = {}
        for size in dict.fromkeys(sizes):
            members = [index for index, other in enumerate(sizes) if other == size]
            images = batch.images[members, :, : size[0], : size[1]]
            detections = self._detect(images, batch.sizes[members])
            found |= dict(zip(members, detections, strict=True))
        return tuple(found[index] for index in range(len(sizes)))

    def _detect(self, images: Tensor, sizes: Tensor) -> list[Detections]:
        """The detections of images of one size."""
        height, width = images.shape[-2:]
        if not self.card.accepts(height, width):
            limit = "{} x {}".format(*self.card.canvas)
            problem = f"it takes images of at most {limit} (height x width), but one has {height} x {width}"
            raise UserError(f"{self.path}: {problem}; leave out --image-size, or export it for larger images")
        if images.dtype != torch.uint8:
            raise ValueError(f"an exported file reads uint8 images, got {images.dtype}")
        boxes, scores, labels = (torch.from_numpy(np.asarray(part)) for part in self.session(images.cpu().numpy()))
        boxes = boxes.clamp(min=0).minimum(extents(sizes.cpu()))
        kept = scores > 0
        return [
            Detections(image_boxes[rows], image_scores[rows], image_labels[rows])
            for image_boxes, image_scores, image_labels, rows in zip(boxes, scores, labels, kept, strict=True)
        ]
