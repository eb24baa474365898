"""Samples in the form of torchvision's detection models become a batch, or a line that names the sample."""

from typing import Any

import pytest
import torch
from torchvision import tv_tensors

import detdistill as dd
from detdistill.errors import UserError

IMAGE = torch.full((3, 40, 50), 7, dtype=torch.uint8)


def test_images_are_padded_and_targets_kept() -> None:
    boxes = torch.tensor([[1.0, 2, 30, 40]])
    samples = [
        (IMAGE, {"boxes": boxes, "labels": torch.tensor([2]), "image_id": 17}),
        (torch.full((3, 20, 70), 9, dtype=torch.uint8), {"boxes": [], "labels": []}),
    ]
    batch, targets = dd.collate_samples(samples)
    assert batch.images.shape == (2, 3, 64, 96)
    assert batch.images.dtype == torch.uint8
    assert batch.images[:, 0].sum((1, 2)).tolist() == [7 * 40 * 50, 9 * 20 * 70]
    assert batch.sizes.tolist() == batch.originals.tolist() == [[40, 50], [20, 70]]
    assert batch.ids.tolist() == [17, 1]
    assert [part.tolist() for part in targets.boxes] == [boxes.tolist(), []]
    assert [part.tolist() for part in targets.labels] == [[2], []]
    assert targets.boxes[1].shape == (0, 4)


def test_float_images_stay_float() -> None:
    batch, _ = dd.collate_samples([(IMAGE.float() / 255, {"boxes": [], "labels": []})])
    assert batch.images.dtype == torch.float32
    assert batch.images.max() == torch.tensor(7) / 255


def boxed(box: Any, label: int = 0) -> dict[str, Any]:
    return {"boxes": torch.tensor([box], dtype=torch.float32), "labels": torch.tensor([label])}


@pytest.mark.parametrize(
    ("image", "target", "reason"),
    [
        ("photo", {}, "the image is a str; give a tensor (3, H, W)"),
        (IMAGE[:1], boxed([0, 0, 9, 9]), "the image is of shape (1, 40, 50)"),
        (IMAGE.long(), boxed([0, 0, 9, 9]), "the image is torch.int64"),
        (IMAGE, {"boxes": []}, "the target has no labels; it has boxes"),
        (IMAGE, {"boxes": torch.zeros(0, 4), "labels": [1]}, "0 boxes and 1 labels"),
        (IMAGE, boxed([0, 0, 9, 9], -1), "a label is -1; labels count from 0"),
        (IMAGE, boxed([20, 20, 10, 10]), "[20.0, 20.0, 10.0, 10.0] is no box x1, y1, x2, y2"),
        (IMAGE, boxed([20, 20, 60, 30]), "in the image of 40 x 50 pixels"),
        (IMAGE, boxed([0, 0, float("nan"), 9]), "is no box"),
    ],
)
def test_a_wrong_sample_is_named(image: Any, target: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError) as stopped:
        dd.collate_samples([(IMAGE, boxed([0, 0, 9, 9])), (image, target)])
    assert str(stopped.value).startswith("collate, sample 1 of the batch: ")
    assert reason in str(stopped.value)


def test_boxes_of_another_format_and_images_of_two_types_are_named() -> None:
    boxes = tv_tensors.BoundingBoxes([[1, 2, 3, 4]], format="XYWH", canvas_size=(40, 50))
    with pytest.raises(UserError, match="the boxes are XYWH; convert them to XYXY"):
        dd.collate_samples([(IMAGE, {"boxes": boxes, "labels": [0]})])
    empty: dict[str, Any] = {"boxes": [], "labels": []}
    with pytest.raises(UserError, match=r"images are torch.float32 and torch.uint8"):
        dd.collate_samples([(IMAGE, empty), (IMAGE.float(), empty)])
