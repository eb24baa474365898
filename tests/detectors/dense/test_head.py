"""The common head of ATSS and GFL: initial scores, losses without padding, postprocessing against a slow version."""

import pytest
import torch
from torch import Tensor

from detdistill.detectors.dense.head import dense_candidates
from detdistill.recipe import ModelConfig
from detdistill.types import Batch, Layout, Need, Predictions
from tests.detectors.builders import CLASSES, scene, shake, tiny

Candidate = tuple[float, list[float], int]
"""Score, box and label."""


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("head", ["atss", "gfl"])
def test_every_score_starts_at_one_percent(head: str, depthwise: bool):
    detector = tiny(head, depthwise=depthwise).eval()
    assert detector.head.classifier.bias.sigmoid().tolist() == pytest.approx([0.01] * len(CLASSES), rel=1e-3)
    scores = detector.observe(scene()[0], need=Need(predictions=True)).stages[0].scores()
    assert scores.mean().item() == pytest.approx(0.01, rel=0.1)


def test_a_separable_head_has_pointwise_predictors_and_larger_initial_weights():
    head = tiny("atss", depthwise=True).head
    assert [layer.kernel_size for layer in (head.classifier, head.regressor, head.quality)] == [(1, 1)] * 3
    assert head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.3)
    # Kaiming's deviation is 1 / sqrt(9 inputs) before a linear function, and sqrt(2 / 32 inputs) before a ReLU.
    assert head.classification_tower[0].depthwise.weight.std().item() == pytest.approx(1 / 3, rel=0.2)
    assert head.regression_tower[2].pointwise.weight.std().item() == pytest.approx((2 / 32) ** 0.5, rel=0.2)


@pytest.mark.parametrize("head", ["atss", "gfl"])
def test_predictions_in_the_padding_do_not_change_the_losses(head: str, monkeypatch: pytest.MonkeyPatch):
    detector = shake(tiny(head)).eval()
    batch, targets = scene()
    stage = detector.observe(batch, targets).stages[0]
    assert 0 < (~stage.valid).sum() < stage.valid.sum()
    plain_predict = detector.head.predict

    def losses_with(changed: Tensor) -> dict[str, Tensor]:
        """The task losses if 7 is added to all predicted values in the `changed` rows (B, N)."""

        def predict(*arguments: object) -> tuple[Tensor | None, ...]:
            parts = []
            for part in plain_predict(*arguments):
                if part is not None:
                    rows = changed.view(*changed.shape, *[1] * (part.ndim - 2))
                    part = torch.where(rows, part + 7.0, part)
                parts.append(part)
            return tuple(parts)

        monkeypatch.setattr(detector.head, "predict", predict)
        return dict(detector.observe(batch, targets).losses)

    no_rows = torch.zeros_like(stage.valid)
    unchanged, changed_in_padding, changed_everywhere = (
        losses_with(rows) for rows in (no_rows, ~stage.valid, ~no_rows)
    )
    for name, term in unchanged.items():
        assert torch.equal(changed_in_padding[name], term)
    assert not torch.equal(changed_everywhere["classification"], unchanged["classification"])


def iou(first: list[float], second: list[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)


def slow_postprocess(
    stage: Predictions, batch: Batch, threshold: float, max_iou: float, max_detections: int
) -> list[list[Candidate]]:
    """The detections of each image, best first, computed with loops over numbers.

    Candidates are the best thousand of each level above the threshold, clipped to the image. A candidate is kept unless
    a better one of its class overlaps it by more than `max_iou`.
    """
    scores = stage.logits.sigmoid()
    if stage.quality is not None:
        scores = scores * stage.quality.sigmoid()[..., None]
    images = []
    for image, (height, width) in enumerate(batch.sizes.tolist()):
        candidates: list[Candidate] = []
        first = 0
        for count in stage.layout.counts:
            level: list[Candidate] = []
            for row in range(first, first + count):
                x1, y1, x2, y2 = stage.boxes[image, row].tolist()
                box = [min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)]
                is_valid = bool(stage.valid[image, row])
                level += [(score, box, label) for label, score in enumerate(scores[image, row].tolist()) if is_valid]
            best = sorted(level, key=lambda candidate: -candidate[0])[:1000]
            candidates += [candidate for candidate in best if candidate[0] > threshold]
            first += count
        kept: list[Candidate] = []
        for score, box, label in sorted(candidates, key=lambda candidate: -candidate[0]):
            is_covered = any(label == kept_label and iou(box, kept_box) > max_iou for _, kept_box, kept_label in kept)
            if len(kept) < max_detections and not is_covered:
                kept.append((score, box, label))
        images.append(kept)
    return images


def crowded_predictions(
    shapes: tuple[tuple[int, int], ...], half_side: float, quality: bool
) -> tuple[Predictions, Batch]:
    """Random predictions of two classes for two images, the second padded, with one box per cell.

    shapes: (rows, columns) per level, from stride 8 on. half_side: of the boxes, in strides.
    """
    generator = torch.Generator().manual_seed(1)
    layout = Layout(shapes, tuple(8 * 2**level for level in range(len(shapes))))
    points, strides = [], []
    for (rows, columns), stride in zip(shapes, layout.strides, strict=True):
        points += [[column * stride, row * stride] for row in range(rows) for column in range(columns)]
        strides += [float(stride)] * (rows * columns)
    center, sides = torch.tensor(points, dtype=torch.float32), torch.tensor(strides)[:, None] * half_side
    jitter = 0.3 * sides * torch.randn(2, len(center), 2, generator=generator)
    boxes = torch.cat([center - sides + jitter, center + sides + jitter], -1)
    logits = 2 * torch.randn(2, len(center), 2, generator=generator)
    sizes = torch.tensor([[shapes[0][0] * 8, shapes[0][1] * 8], [shapes[0][0] * 5, shapes[0][1] * 6]])
    batch = Batch(
        torch.zeros(2, 3, *sizes[0].tolist(), dtype=torch.uint8), sizes, sizes, torch.tensor([1, 2]), ("a", "b")
    )
    quality_logits = torch.randn(2, len(center), generator=generator) if quality else None
    return Predictions(logits, "sigmoid", boxes, layout.valid(sizes), layout, quality=quality_logits), batch


def assert_equals_slow_version(
    stage: Predictions, batch: Batch, threshold: float, max_iou: float, max_detections: int
) -> list[int]:
    """Asserts that the candidates give the detections of the slow version. Returns their number per image."""
    config = ModelConfig(name="atss:mobilenetv2_035", score_threshold=threshold, detections=max_detections)
    expected = slow_postprocess(stage, batch, threshold, max_iou, max_detections)
    found = dense_candidates(stage, batch, config, max_iou).detections()
    for detections, candidates in zip(found, expected, strict=True):
        assert detections.labels.tolist() == [label for _, _, label in candidates]
        torch.testing.assert_close(detections.scores, torch.tensor([score for score, _, _ in candidates]))
        boxes = torch.tensor([box for _, box, _ in candidates], dtype=torch.float32)
        torch.testing.assert_close(detections.boxes, boxes, rtol=1e-5, atol=1e-3)
    return [len(candidates) for candidates in expected]


@pytest.mark.parametrize("quality", [False, True])
@pytest.mark.parametrize(
    ("threshold", "max_iou", "max_detections"), [(0.01, 0.6, 100), (0.05, 0.3, 1000), (0.5, 0.6, 1000), (0.01, 0.6, 7)]
)
def test_postprocess_equals_a_slow_version(quality: bool, threshold: float, max_iou: float, max_detections: int):
    stage, batch = crowded_predictions(((12, 16), (6, 8)), 2.0, quality)
    counts = assert_equals_slow_version(stage, batch, threshold, max_iou, max_detections)
    if max_detections == 7:
        assert counts == [7, 7]
    else:
        assert counts[0] > 60
        assert counts[1] > 20


def test_a_thousand_candidates_of_each_level_are_kept():
    # The boxes hardly overlap, so only the limit per level removes candidates: 2400 on the first level, 600 on the
    # next.
    stage, batch = crowded_predictions(((30, 40), (15, 20)), 0.4, quality=False)
    counts = assert_equals_slow_version(stage, batch, 0.001, 0.6, 5000)
    assert counts[0] > 1100
    config = ModelConfig(name="atss:mobilenetv2_035", score_threshold=0.001, detections=5000)
    assert len(dense_candidates(stage, batch, config, nms_threshold=1.0).detections()[0].boxes) == 1000 + 600


def test_a_class_does_not_suppress_another():
    stage, batch = crowded_predictions(((1, 1),), 2.0, quality=False)
    assert assert_equals_slow_version(stage, batch, 0.0, 0.1, 10) == [2, 2]


@pytest.mark.parametrize("head", ["atss", "gfl"])
def test_the_nms_threshold_is_the_published_one_unless_it_is_set(head: str):
    batch, _ = scene()
    for nms_threshold, expected in ((None, 0.6), (0.3, 0.3)):
        detector = shake(tiny(head, nms_threshold=nms_threshold, score_threshold=0.05)).eval()
        with torch.no_grad():
            stage = detector.observe(batch, need=Need(predictions=True)).stages[0]
            detections = detector.detect(batch)
        for image, candidates in zip(detections, slow_postprocess(stage, batch, 0.05, expected, 100), strict=True):
            assert image.labels.tolist() == [label for _, _, label in candidates]
            torch.testing.assert_close(image.scores, torch.tensor([score for score, _, _ in candidates]))
