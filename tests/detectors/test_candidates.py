"""Candidates: what is suppressed, and that the rows for export hold the same detections."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detdistill.detectors.candidates import Candidates, best_first, suppress
from tests.detectors.builders import DENSE, SETS, scene, shake, tiny

HEADS = (*DENSE, "faster_rcnn", *SETS)


def make(boxes: list[list[float]], scores: list[float], labels: list[int], **rules: object) -> Candidates:
    """Candidates of one image."""
    values = {"threshold": 0.1, "nms": 0.5, "limit": 3, "classes": 2} | rules
    return Candidates(torch.tensor([boxes]), torch.tensor([scores]), torch.tensor([labels]), **values)  # type: ignore


def test_a_worse_box_of_the_same_class_is_suppressed():
    boxes = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 6.0], [0.0, 0.0, 10.0, 4.0], [0.0, 0.0, 10.0, 10.0]]
    candidates = make(boxes, [0.9, 0.8, 0.7, 0.6], [0, 0, 0, 1])
    # IoU with the first box: 0.6, which is above 0.5, and 0.4, which is not. The last box has another class.
    kept = suppress(candidates.boxes, candidates.scores, candidates.labels, 0.5, 2)
    torch.testing.assert_close(kept, torch.tensor([[0.9, 0.0, 0.7, 0.6]]))
    (detections,) = candidates.detections()
    assert detections.labels.tolist() == [0, 0, 1]
    torch.testing.assert_close(detections.scores, torch.tensor([0.9, 0.7, 0.6]))


def test_without_suppression_the_best_are_taken():
    candidates = make([[0.0, 0.0, 9.0, 9.0]] * 4, [0.2, 0.9, 0.05, 0.5], [0, 1, 0, 0], nms=None, limit=2)
    (detections,) = candidates.detections()
    torch.testing.assert_close(detections.scores, torch.tensor([0.9, 0.5]))
    assert detections.labels.tolist() == [1, 0]


def test_rows_without_a_detection_are_marked():
    boxes, scores, labels = make([[1.0, 1.0, 9.0, 9.0]], [0.4], [1]).table()
    assert boxes.tolist() == [[[1.0, 1.0, 9.0, 9.0], [0.0] * 4, [0.0] * 4]]
    torch.testing.assert_close(scores, torch.tensor([[0.4, 0.0, 0.0]]))
    assert labels.tolist() == [[1, -1, -1]]
    boxes, scores, labels = make([[1.0, 1.0, 9.0, 9.0]], [0.1], [1]).table()  # not above the threshold
    assert not boxes.any() and not scores.any() and (labels == -1).all()


def test_equal_scores_keep_their_order():
    best, index = best_first(torch.tensor([[0.5, 0.7, 0.5, 0.7]]), 3)
    assert index.tolist() == [[1, 3, 0]]
    assert best_first(best, 9)[0].shape == (1, 3)


@given(seed=st.integers(0, 10_000), nms=st.sampled_from([None, 0.3, 0.7]), limit=st.integers(1, 12))
def test_the_rows_for_export_hold_the_detections(seed: int, nms: float | None, limit: int):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(2, 10, 2, generator=generator) * 20
    boxes = torch.cat([corners, corners + 1 + 20 * torch.rand(2, 10, 2, generator=generator)], -1)
    scores = torch.rand(2, 10, generator=generator)
    labels = torch.randint(0, 2, (2, 10), generator=generator)
    candidates = Candidates(boxes, scores, labels, threshold=0.4, nms=nms, limit=limit, classes=2)
    assert_rows_equal(candidates)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_gives_candidates(head: str):
    detector = shake(tiny(head)).eval()
    batch, _ = scene()
    with torch.no_grad():
        candidates = detector.candidates(batch)
        found = detector.detect(batch)
    assert candidates.boxes.shape == (*candidates.scores.shape, 4)
    for own, other in zip(candidates.detections(), found, strict=True):
        assert len(own.scores) > 0
        torch.testing.assert_close(own.boxes, other.boxes)
    assert_rows_equal(candidates)


def assert_rows_equal(candidates: Candidates) -> None:
    """Asserts that the rows for export hold the detections of `detect`."""
    for image, detections in enumerate(candidates.detections()):
        boxes, scores, labels = (part[image] for part in candidates.table())
        count = len(detections.scores)
        assert len(scores) == candidates.limit
        assert torch.equal(scores[:count], detections.scores) and not scores[count:].any()
        assert torch.equal(boxes[:count], detections.boxes)
        assert torch.equal(labels[:count], detections.labels) and (labels[count:] == -1).all()
