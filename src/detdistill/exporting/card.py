"""What an exported file says of itself: its classes, its image size, and how it was made."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from detdistill.errors import UserError
from detdistill.types import padded_size

PREFIX = "detdistill."  # of the keys in the metadata of a file


@dataclass(frozen=True)
class ExportCard:
    """The description inside an exported file.

    head: name of the head in DETECTORS.
    classes: class names, in the order of the labels.
    category_ids: of the data set, in the same order.
    image_size: (height, width) that images are resized to fit into.
    multiple: images of any size are accepted and padded inside to a multiple of it. None: images of at most `canvas`
        are accepted, and padded inside to it.
    canvas: (height, width) of the padded images, if `multiple` is None.
    mean, std: of pixels in 0..1, per channel, which are applied inside. None if they are not known.
    precision: fp32, fp16 or int8.
    threshold: only detections with a higher score are returned. detections: largest number per image.
    parameters: number of the detector's parameters.
    operations: of one image of `image_size`; a multiplication and an addition are two.
    version: of detdistill.
    """

    head: str
    classes: tuple[str, ...]
    category_ids: tuple[int | str, ...]
    image_size: tuple[int, int]
    multiple: int | None
    canvas: tuple[int, int]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    precision: str
    threshold: float
    detections: int
    parameters: int
    operations: int
    version: str

    def metadata(self) -> dict[str, str]:
        """The description as texts by key, each value in JSON."""
        return {PREFIX + name: json.dumps(value, ensure_ascii=False) for name, value in asdict(self).items()}

    @classmethod
    def read(cls, metadata: Mapping[str, str], source: str) -> "ExportCard":
        """The inverse of `metadata`. Raises UserError, with the name `source`, if the file is not one of ours."""
        try:
            values: dict[str, Any] = {field.name: json.loads(metadata[PREFIX + field.name]) for field in fields(cls)}
        except (KeyError, ValueError):
            problem = "it has no description by detdistill, so its classes and its image size are not known"
            raise UserError(f"{source}: {problem}; make the file with `detdistill export`") from None
        frozen: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**frozen)

    def accepts(self, height: int, width: int) -> bool:
        """True if images of this size can be given to the file."""
        return self.multiple is not None or (height <= self.canvas[0] and width <= self.canvas[1])

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) to which images of this size are padded."""
        if self.multiple is None:
            return self.canvas
        return padded_size((height, width), self.multiple)
