"""A trained detector as a function from pictures to boxes in pixels of these pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from detdistill import evaluation
from detdistill.data import Example, collate
from detdistill.data.transforms import canvas_size, fitted_size, image_tensor, resize_image
from detdistill.errors import UserError
from detdistill.evaluation.coco import check_finite
from detdistill.evaluation.tiling import Window
from detdistill.recipe import DataConfig, TrainConfig
from detdistill.run.defaults import with_known_size, with_saved_data
from detdistill.run.models import category_ids_of, find_detector, place
from detdistill.run.tables import Say
from detdistill.types import Batch, Detections, Detector

SMALLEST_TILE = 32  # pixels


@dataclass(frozen=True, eq=False)
class Predictor:
    """A detector on its device, and how pictures are prepared for it.

    name: the model as the user named it.
    category_ids: the id of each class in the data set that it was trained on, or 1, 2, ...
    config: the size to which pictures are scaled.
    batch_size: pictures or tiles that the detector gets at a time.
    tile: side of the tiles in pixels of the pictures, or None to predict on whole pictures only.
    """

    name: str
    detector: Detector
    category_ids: tuple[int | str, ...]
    config: DataConfig
    device: torch.device
    batch_size: int
    tile: int | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the labels."""
        return self.detector.info.classes

    def detect(self, pictures: Sequence[Image.Image], names: Sequence[str]) -> list[Detections]:
        """The detections of each picture, best first, in pixels of the picture, on the CPU.

        With tiles, each picture is predicted as a whole and in overlapping tiles; `merge_windows` has the rules. names:
        of the pictures, for messages. Raises FloatingPointError if a score or a box isn't finite.
        """
        sizes = [(picture.height, picture.width) for picture in pictures]
        windows = [self._windows(size) for size in sizes]
        cuts = ((pictures[index], window) for index, each in enumerate(windows) for window in each)
        titles = [name for name, each in zip(names, windows, strict=True) for _ in each]
        parts = [part for batch in self._batches(cuts, titles) for part in self._detect(batch)]
        found = []
        for size, each in zip(sizes, windows, strict=True):
            own, parts = parts[: len(each)], parts[len(each) :]
            found.append(own[0] if len(each) == 1 else evaluation.merge_windows(own, each, size))
        return found

    def _windows(self, size: tuple[int, int]) -> list[Window]:
        if self.tile is None:
            return [(0, 0, size[1], size[0])]
        return evaluation.tile_windows(size, self.tile)

    def _batches(self, cuts: Iterator[tuple[Image.Image, Window]], titles: Sequence[str]) -> Iterator[Batch]:
        """The windows as batches, in their order. Only one batch is in memory."""
        examples: list[Example] = []
        for number, (picture, window) in enumerate(cuts):
            part = picture if window == (0, 0, *picture.size) else picture.crop(window)
            image = image_tensor(part.convert("RGB"))
            size = (image.shape[-2], image.shape[-1])
            image = resize_image(image, fitted_size(size, canvas_size(self.config)))
            no_boxes, no_labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
            examples.append(Example(image.as_subclass(torch.Tensor), no_boxes, no_labels, size, number, titles[number]))
            if len(examples) == self.batch_size or number + 1 == len(titles):
                yield _collated(examples)
                examples = []

    def _detect(self, batch: Batch) -> list[Detections]:
        with evaluation.evaluating(self.detector), torch.no_grad():
            found = self.detector.detect(batch.to(self.device))
        originals = evaluation.to_original(found, batch)
        for detections, name in zip(originals, batch.names, strict=True):
            check_finite(detections, name)
        return originals


def load_predictor(model: str, data: DataConfig, train: TrainConfig, tile: int | None, say: Say) -> Predictor:
    """The detector that `model` names, with its image size unless `data` sets one. say: prints a line.

    Raises UserError if the model can't be loaded or its image size can't be known.
    """
    if tile is not None and tile < SMALLEST_TILE:
        raise UserError(f"--tile {tile}: tiles have a side of at least {SMALLEST_TILE} pixels, such as 640")
    config = with_known_size(with_saved_data(data, model), model, say)
    detector, report = find_detector(model, ())
    say(f"model: {report}")
    ids = category_ids_of(model, detector)
    return Predictor(model, detector, ids, config, place(detector, train.device), train.images_per_step, tile)


def _collated(examples: Sequence[Example]) -> Batch:
    collated = collate(examples)
    if isinstance(collated, UserError):
        raise collated
    return collated[0]
