"""The comparison of two detections, by hand."""

from dataclasses import replace

import pytest
import torch

from detdistill.exporting.check import Tolerance, difference, padded, sample_batches
from detdistill.types import Detections
from tests.exporting.builders import card_of

TOLERANCE = Tolerance(score=0.01, box=1.0, alone=0.1)
CARD = replace(card_of("gfl"), detections=3, threshold=0.1)


def found(*entries: tuple[float, float, int]) -> Detections:
    """Detections of (left side, score, label), 10 pixels wide and high."""
    boxes = torch.tensor([[left, 0.0, left + 10, 10.0] for left, _, _ in entries]).reshape(-1, 4)
    labels = torch.tensor([label for *_, label in entries], dtype=torch.long)
    return Detections(boxes, torch.tensor([score for _, score, _ in entries]), labels)


def test_the_order_of_equal_scores_does_not_matter() -> None:
    result = difference(found((0, 0.9, 0), (30, 0.9, 1)), found((30.5, 0.9, 1), (0, 0.895, 0)), CARD, TOLERANCE)
    assert (result.detections, result.alone) == (4, 0)
    assert result.score == pytest.approx(0.005, abs=1e-6)
    assert result.box == 0.5
    assert result.fits(TOLERANCE)


@pytest.mark.parametrize("other", [(2.0, 0.9, 0), (0.0, 0.8, 0), (0.0, 0.9, 1)])
def test_a_moved_box_a_changed_score_and_another_label_are_seen(other: tuple[float, float, int]) -> None:
    result = difference(found((0, 0.9, 0)), found(other), CARD, TOLERANCE)
    assert result.alone == 2
    assert not result.fits(TOLERANCE)


def test_a_box_has_one_partner() -> None:
    result = difference(found((0, 0.9, 0), (0, 0.9, 0)), found((0, 0.9, 0)), CARD, TOLERANCE)
    assert result.alone == 1


def test_a_score_near_the_lowest_one_may_be_missing() -> None:
    assert difference(found((0, 0.105, 0)), found(), CARD, TOLERANCE).alone == 0  # near the threshold 0.1
    full = found((0, 0.9, 0), (30, 0.8, 0), (60, 0.5, 0))
    other = found((0, 0.9, 0), (30, 0.8, 0), (90, 0.5, 0))  # the third of at most three
    assert difference(full, other, CARD, TOLERANCE).alone == 0
    assert difference(found((0, 0.9, 0), (60, 0.5, 0)), found((0, 0.9, 0)), CARD, TOLERANCE).alone == 1


def test_nothing_on_both_sides_is_equal() -> None:
    result = difference(found(), found(), CARD, TOLERANCE)
    assert result.fits(TOLERANCE)
    assert result.text() == "no detections on either side"


def test_batches_of_a_comparison() -> None:
    images = [torch.full((3, 20 + number, 40 - number), number, dtype=torch.uint8) for number in range(4)]
    batches = sample_batches(images)
    assert [tuple(batch.shape) for batch in batches[-2:]] == [(3, 3, 20, 38), (1, 3, 20, 38)]
    assert len(batches) == 6
    assert (batches[-1] == 127).all()


def test_images_are_padded_as_the_file_pads_them() -> None:
    fixed = replace(CARD, multiple=None, canvas=(64, 96))
    assert CARD.padded_size(33, 64) == (64, 64)
    assert fixed.padded_size(33, 64) == (64, 96)
    batch = padded(torch.ones(2, 3, 33, 64, dtype=torch.uint8), CARD)
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.images.sum() == 2 * 3 * 33 * 64
    assert batch.sizes.tolist() == [[33, 64]] * 2
