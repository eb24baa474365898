"""From dense scores to detections, against a slow version over plain numbers."""

import pytest
import torch

from detdistill.detectors.dense.head import suppress
from detdistill.recipe import ModelConfig
from detdistill.types import Batch, Layout, Need, Predictions
from tests.detectors.builders import scene, shake, tiny

Found = tuple[float, list[float], int]  # score, box, label


def iou(first: list[float], second: list[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)


def slowly(stage: Predictions, batch: Batch, threshold: float, overlap: float, most: int) -> list[list[Found]]:
    """Of each level the best thousand above the threshold, clipped to the image; then, best first, those that no better one of their class
    covers by more than `overlap`."""
    scores = stage.logits.sigmoid()
    if stage.quality is not None:
        scores = scores * stage.quality.sigmoid()[..., None]
    images = []
    for image, (height, width) in enumerate(batch.sizes.tolist()):
        candidates: list[Found] = []
        first = 0
        for count in stage.layout.counts:
            level: list[Found] = []
            for row in range(first, first + count):
                x1, y1, x2, y2 = stage.boxes[image, row].tolist()
                box = [min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)]
                inside = bool(stage.valid[image, row])
                level += [(score, box, label) for label, score in enumerate(scores[image, row].tolist()) if inside]
            candidates += [found for found in sorted(level, key=lambda found: -found[0])[:1000] if found[0] > threshold]
            first += count
        kept: list[Found] = []
        for score, box, label in sorted(candidates, key=lambda found: -found[0]):
            if len(kept) < most and not any(label == other and iou(box, better) > overlap for _, better, other in kept):
                kept.append((score, box, label))
        images.append(kept)
    return images


def crowd(shapes: tuple[tuple[int, int], ...], reach: float, quality: bool) -> tuple[Predictions, Batch]:
    """Two images full of candidates of two classes: a box a cell, `reach` strides to each side, the second image padded."""
    generator = torch.Generator().manual_seed(1)
    layout = Layout(shapes, tuple(8 * 2**level for level in range(len(shapes))))
    points, strides = [], []
    for (rows, columns), stride in zip(shapes, layout.strides, strict=True):
        points += [[column * stride, row * stride] for row in range(rows) for column in range(columns)]
        strides += [float(stride)] * (rows * columns)
    middle, sides = torch.tensor(points, dtype=torch.float32), torch.tensor(strides)[:, None] * reach
    jitter = 0.3 * sides * torch.randn(2, len(middle), 2, generator=generator)
    boxes = torch.cat([middle - sides + jitter, middle + sides + jitter], -1)
    logits = 2 * torch.randn(2, len(middle), 2, generator=generator)
    sizes = torch.tensor([[shapes[0][0] * 8, shapes[0][1] * 8], [shapes[0][0] * 5, shapes[0][1] * 6]])
    batch = Batch(
        torch.zeros(2, 3, *sizes[0].tolist(), dtype=torch.uint8), sizes, sizes, torch.tensor([1, 2]), ("a", "b")
    )
    extra = torch.randn(2, len(middle), generator=generator) if quality else None
    return Predictions(logits, "sigmoid", boxes, layout.valid(sizes), layout, quality=extra), batch


def compare(stage: Predictions, batch: Batch, threshold: float, overlap: float, most: int) -> list[int]:
    """Numbers found in each image, once both versions are seen to agree."""
    config = ModelConfig(name="atss:mobilenetv2_035", score_threshold=threshold, detections=most)
    slow = slowly(stage, batch, threshold, overlap, most)
    for mine, theirs in zip(suppress(stage, batch, config, overlap), slow, strict=True):
        assert mine.labels.tolist() == [label for _, _, label in theirs]
        torch.testing.assert_close(mine.scores, torch.tensor([score for score, _, _ in theirs]))
        torch.testing.assert_close(
            mine.boxes, torch.tensor([box for _, box, _ in theirs], dtype=torch.float32), rtol=1e-5, atol=1e-3
        )
    return [len(found) for found in slow]


@pytest.mark.parametrize("quality", [False, True])
@pytest.mark.parametrize(
    ("threshold", "overlap", "most"), [(0.01, 0.6, 100), (0.05, 0.3, 1000), (0.5, 0.6, 1000), (0.01, 0.6, 7)]
)
def test_it_equals_a_slow_version(quality: bool, threshold: float, overlap: float, most: int):
    stage, batch = crowd(((12, 16), (6, 8)), 2.0, quality)
    found = compare(stage, batch, threshold, overlap, most)
    if most == 7:
        assert found == [7, 7]
    else:
        assert found[0] > 60
        assert found[1] > 20


def test_a_thousand_candidates_of_each_level():
    # Boxes that hardly meet, so that what is missing is missing because of the number: 2400 candidates on the first level, 600 on the next.
    stage, batch = crowd(((30, 40), (15, 20)), 0.4, quality=False)
    found = compare(stage, batch, 0.001, 0.6, 5000)
    assert found[0] > 1100
    config = ModelConfig(name="atss:mobilenetv2_035", score_threshold=0.001, detections=5000)
    assert len(suppress(stage, batch, config, nms_threshold=1.0)[0].boxes) == 1000 + 600


def test_classes_do_not_suppress_one_another():
    stage, batch = crowd(((1, 1),), 2.0, quality=False)
    assert compare(stage, batch, 0.0, 0.1, 10) == [2, 2]


@pytest.mark.parametrize("head", ["atss", "gfl"])
def test_detect_suppresses_as_published_or_as_told(head: str):
    batch, _ = scene()
    for told, used in ((None, 0.6), (0.3, 0.3)):
        detector = shake(tiny(head, nms_threshold=told, score_threshold=0.05)).eval()
        with torch.no_grad():
            stage = detector.observe(batch, need=Need(predictions=True)).stages[0]
            found = detector.detect(batch)
        for mine, theirs in zip(found, slowly(stage, batch, 0.05, used, 100), strict=True):
            assert mine.labels.tolist() == [label for _, _, label in theirs]
            torch.testing.assert_close(mine.scores, torch.tensor([score for score, _, _ in theirs]))
