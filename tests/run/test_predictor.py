"""Predictor: boxes in pixels of the pictures, with and without tiles."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from detdistill import evaluation
from detdistill.data import EvalLoader, Split, read_images
from detdistill.errors import UserError
from detdistill.evaluation.coco import check_finite
from detdistill.recipe import DataConfig, TrainConfig
from detdistill.run.predictor import Predictor, load_predictor
from detdistill.types import Batch, Detections

SIDE = 20


class Squares:
    """Detects the one white square of SIDE pixels of the batch in each image, if it is there with all its pixels, and
    otherwise the white part of it with a lower score.
    """

    def __init__(self) -> None:
        self.batches: list[int] = []

    def modules(self) -> Iterator[Any]:
        return iter(())

    def train(self, mode: bool) -> None:
        pass

    def detect(self, batch: Batch) -> list[Detections]:
        self.batches.append(len(batch))
        found = []
        for image in batch.images:
            rows, columns = (image[0] > 200).nonzero().unbind(1)
            if len(rows) < 4:
                found.append(Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long()))
                continue
            box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            score = torch.tensor([len(rows) / SIDE**2]).clamp(max=1)
            found.append(Detections(box[None], score, torch.zeros(1).long()))
        return found


def predictor(tile: int | None, image_size: int = 64, batch_size: int = 4) -> Predictor:
    config = DataConfig(image_size=image_size)
    return Predictor("squares", Squares(), (1,), config, torch.device("cpu"), batch_size, tile)  # type: ignore[arg-type]


def picture(left: int, top: int, size: tuple[int, int] = (256, 200)) -> Image.Image:
    image = Image.new("RGB", size)
    image.paste("white", (left, top, left + SIDE, top + SIDE))
    return image


@pytest.mark.parametrize("place", [(10, 10), (54, 30), (60, 100), (230, 175), (118, 60)])
def test_tiles_find_a_small_object_anywhere_exactly_and_once(place: tuple[int, int]) -> None:
    model = predictor(tile=64)
    (found,) = model.detect([picture(*place)], ["a"])
    best = found.boxes[found.scores == 1]
    assert best.tolist() == [[*place, place[0] + SIDE, place[1] + SIDE]]
    inside = [evaluation.merge_windows([found], [(0, 0, 256, 200)], (200, 256))]
    assert len(inside[0].scores) == len(found.scores)  # what is left does not overlap
    assert model.detector.batches == [4] * 5 + [1]  # type: ignore[attr-defined]  # the whole and 5 x 4 tiles


def test_without_tiles_the_object_is_too_small() -> None:
    (found,) = predictor(tile=None).detect([picture(100, 60)], ["a"])
    assert (found.scores < 0.1).all()  # 5 x 5 pixels of the scaled picture


def test_pictures_of_different_sizes_get_their_own_boxes() -> None:
    sizes = [(64, 64), (128, 128), (64, 32)]
    found = predictor(None).detect([picture(10, 8, size) for size in sizes], ["a", "b", "c"])
    boxes = [each.boxes[0].tolist() for each in found]
    assert boxes[0] == boxes[2] == [10, 8, 30, 28]
    assert boxes[1] == pytest.approx([10, 8, 30, 28], abs=2.1)  # scaled by two
    assert predictor(None).detect([], []) == []


def test_boxes_equal_those_of_an_evaluation(teacher_run: Path, tmp_path: Path) -> None:
    for name, size in (("a", (90, 70)), ("b", (64, 64)), ("c", (40, 130))):
        Image.effect_noise(size, 80).save(tmp_path / f"{name}.png")
    model = load_predictor(str(teacher_run), DataConfig(), TrainConfig(batch_size=2, device="cpu"), None, print)
    records = read_images([tmp_path], DataConfig())
    expected: list[Detections] = []
    with torch.no_grad():
        for batch, _ in EvalLoader(Split("images", tuple(records)), model.config, batch_size=2):
            expected += evaluation.to_original(model.detector.detect(batch), batch)
    found = model.detect([record.image() for record in records], ["a", "b", "c"])
    for own, other in zip(found, expected, strict=True):
        assert len(own.scores)
        assert torch.equal(own.boxes, other.boxes) and torch.equal(own.scores, other.scores)
    assert model.category_ids == tuple(range(1, 7)) and model.classes[0] == "disc"


def test_a_tile_must_hold_something() -> None:
    with pytest.raises(UserError, match=r"--tile 31: tiles have a side of at least 32 pixels"):
        load_predictor("nowhere", DataConfig(), TrainConfig(), 31, print)


def test_a_diverged_detector_is_named_with_the_picture() -> None:
    broken = Detections(torch.zeros(1, 4), torch.tensor([float("nan")]), torch.zeros(1).long())
    with pytest.raises(FloatingPointError, match=r"^a: a score or a box of"):
        check_finite(broken, "a")
