"""The losses and the decoding of GFL and ATSS, against hand values and slow loops over plain numbers."""

import math

import pytest
import torch
from torch import Tensor

from detdistill.detectors.dense.atss import atss_losses
from detdistill.detectors.dense.gfl import distribution_focal, gfl_losses
from detdistill.geometry import expected_distance, to_boxes
from detdistill.types import Assignment, Need, Predictions, Targets
from tests.detectors.builders import scene, shake, tiny

K, R = 3, 5  # classes, bins
POINTS = torch.tensor([[8.0, 8], [16, 8], [24, 16], [16, 16], [32, 32], [0, 48], [64, 64]])
STRIDES = torch.tensor([8.0, 8, 8, 8, 16, 16, 32])
TARGETS = Targets(
    (
        torch.tensor([[2.0, 3, 30, 27], [10, 0, 20, 70]]),
        torch.tensor([[4.0, 4, 60, 50]]),
    ),  # 54 pixels below a point of stride 8
    (torch.tensor([2, 0]), torch.tensor([1])),
)
MATCHED = torch.tensor([[0, 1, -1, 0, -2, -1, -1], [-1, -1, 0, -2, 0, -1, -1]])
VALID = torch.tensor([[1, 1, 1, 1, 0, 1, 0], [1, 1, 1, 0, 1, 0, 0]]).bool()  # ambiguous rows, and three of padding
QUALITY = torch.tensor([[0.9, 0.3, 0, 0.75, 0, 0, 0], [0, 0, 0.5, 0, 0.2, 0, 0]])


def predicted(shift: float) -> Predictions:
    """Two images of seven rows, boxes near their objects; scores move with `shift`."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 7, K, generator=generator) * 2 + shift
    truth = torch.stack([boxes[rows.clamp(min=0)] for boxes, rows in zip(TARGETS.boxes, MATCHED, strict=True)])
    boxes = truth + torch.randn(2, 7, 4, generator=generator) * 3
    edges, quality = torch.randn(2, 7, 4, R, generator=generator) * 2, torch.randn(2, 7, generator=generator)
    return Predictions(logits, "sigmoid", boxes, VALID, edges=edges, quality=quality)


def assigned() -> Assignment:
    return Assignment(MATCHED, VALID, torch.tensor(5.0), QUALITY)


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def entropy(logit: float, target: float) -> float:
    """Binary cross-entropy."""
    return -target * math.log(sigmoid(logit)) - (1 - target) * math.log(sigmoid(-logit))


def overlap(first: list[float], second: list[float]) -> tuple[float, float]:
    """IoU and 1 - GIoU of two boxes."""
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - width * height
    hull = (max(first[2], second[2]) - min(first[0], second[0])) * (max(first[3], second[3]) - min(first[1], second[1]))
    return width * height / union, 1 - width * height / union + (hull - union) / hull


def slow_gfl(stage: Predictions) -> dict[str, float]:
    """Equations 3 to 6 of GFL, row by row: sums over positives weighted by the best score, by the sum of these weights, at least 1."""
    terms, weights = {"classification": 0.0, "box": 0.0, "edges": 0.0}, 0.0
    for image in range(2):
        for row in range(7):
            match, wanted = int(MATCHED[image, row]), [0.0] * K
            logits = stage.logits[image, row].tolist()
            if match >= 0:
                truth = TARGETS.boxes[image][match].tolist()
                iou, distance = overlap(stage.boxes[image, row].tolist(), truth)
                wanted[int(TARGETS.labels[image][match])] = iou
                weight = max(map(sigmoid, logits))
                weights += weight
                terms["box"] += 2.0 * weight * distance
                x, y, stride = *POINTS[row].tolist(), float(STRIDES[row])
                for side, pixels in enumerate((x - truth[0], y - truth[1], truth[2] - x, truth[3] - y)):
                    away = min(max(pixels / stride, 0.0), R - 1 - 0.1)
                    low = math.floor(away)
                    powers = [math.exp(value) for value in stage.edges[image, row, side].tolist()]
                    below, above = (math.log(powers[low + step] / sum(powers)) for step in (0, 1))
                    terms["edges"] -= 0.25 / 4 * weight * ((low + 1 - away) * below + (away - low) * above)
            if VALID[image, row]:
                terms["classification"] += (
                    sum((sigmoid(z) - y) ** 2 * entropy(z, y) for z, y in zip(logits, wanted, strict=True)) / 5
                )
    return terms | {name: terms[name] / max(weights, 1) for name in ("box", "edges")}


def slow_atss(stage: Predictions) -> dict[str, float]:
    """Focal loss (alpha 0.25, gamma 2) and centre-ness by the number of positives, GIoU weighted by centre-ness."""
    terms, weights = {"classification": 0.0, "box": 0.0, "centerness": 0.0}, 0.0
    for image in range(2):
        for row in range(7):
            match, quality, label = int(MATCHED[image, row]), float(QUALITY[image, row]), -1
            if match >= 0:
                label = int(TARGETS.labels[image][match])
                weights += quality
                terms["box"] += (
                    2.0 * quality * overlap(stage.boxes[image, row].tolist(), TARGETS.boxes[image][match].tolist())[1]
                )
                terms["centerness"] += entropy(float(stage.quality[image, row]), quality) / 5
            for index, logit in enumerate(stage.logits[image, row].tolist() if VALID[image, row] else []):
                right = sigmoid(logit) if index == label else sigmoid(-logit)
                terms["classification"] += (0.25 if index == label else 0.75) * (1 - right) ** 2 * -math.log(right) / 5
    return terms | {"box": terms["box"] / max(weights, 1)}


@pytest.mark.parametrize("shift", [0.0, -6.0])  # with the scores of the second, the weights add up to less than 1
def test_gfl_losses_equal_a_slow_loop(shift: float):
    stage = predicted(shift)
    assert (sum(stage.logits[MATCHED >= 0].sigmoid().amax(-1)) < 1) == (shift < 0)
    losses = gfl_losses(stage, assigned(), TARGETS, POINTS, STRIDES)
    assert {name: float(term) for name, term in losses.items()} == pytest.approx(slow_gfl(stage), rel=1e-4)


def test_atss_losses_equal_a_slow_loop():
    stage = predicted(0.0)
    losses = atss_losses(stage, assigned(), TARGETS)
    assert {name: float(term) for name, term in losses.items()} == pytest.approx(slow_atss(stage), rel=1e-4)


def reached(term: Tensor, leaves: dict[str, Tensor]) -> set[str]:
    """Names of the leaves that get a gradient."""
    gradients = torch.autograd.grad(term, list(leaves.values()), retain_graph=True, allow_unused=True)
    return {name for name, gradient in zip(leaves, gradients, strict=True) if gradient is not None and gradient.any()}


def test_gfl_terms_pull_at_their_own_output_only():
    # The overlap that the class term aims at and the score that weighs the boxes are constants.
    whole = predicted(0.0)
    leaves = {name: getattr(whole, name).requires_grad_() for name in ("logits", "boxes", "edges")}
    losses = gfl_losses(whole, assigned(), TARGETS, POINTS, STRIDES)
    assert [reached(losses[name], leaves) for name in ("classification", "box", "edges")] == [
        {"logits"},
        {"boxes"},
        {"edges"},
    ]


def test_expected_distance_by_hand():
    # 0 * 0.5 + 1 * 0.25 + 2 * 0.125 + 3 * 0.125 = 0.875 strides; a flat distribution over 0..4 gives 2, a sharp one its bin.
    assert expected_distance(torch.tensor([0.5, 0.25, 0.125, 0.125]).log()).item() == pytest.approx(0.875)
    assert expected_distance(torch.zeros(2, 3, 5)).tolist() == [[2.0] * 3] * 2
    assert expected_distance(50 * torch.eye(4)).tolist() == pytest.approx([0.0, 1, 2, 3], abs=1e-6)


def test_distribution_focal_by_hand():
    edges = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    # 1.25 lies between bins 1 and 2: 0.75 * log 4 + 0.25 * log 8 = 2.25 log 2. On a bin, that bin alone; the last one too.
    expected = {1.25: 2.25, 0.0: 1.0, 1.0: 2.0, 0.1: 0.9 * 1 + 0.1 * 2, 2.9: 3.0, 3.0: 3.0}
    found = distribution_focal(edges.expand(len(expected), 4), torch.tensor(list(expected)))
    assert found.tolist() == pytest.approx([bits * math.log(2) for bits in expected.values()], rel=1e-5)


def test_distances_end_a_tenth_before_the_last_bin():
    # All four sides 54 and more strides away: 3.9 of bins 0..4, so a tenth of bin 3 and nine tenths of bin 4.
    edges = torch.tensor([0.0, 0, 0, 2, -1])
    stage = Predictions(
        torch.zeros(1, 1, 1), "sigmoid", torch.zeros(1, 1, 4), VALID[:1, :1], edges=edges.expand(1, 1, 4, R)
    )
    far = Targets((torch.tensor([[-54.0, -54, 54, 54]]),), (torch.tensor([0]),))
    owner = Assignment(torch.zeros(1, 1, dtype=torch.long), VALID[:1, :1], torch.tensor(1.0))
    found = gfl_losses(stage, owner, far, torch.zeros(1, 2), torch.ones(1))["edges"]
    whole = math.log(3 + math.exp(2) + math.exp(-1))
    assert found.item() == pytest.approx(0.25 * 0.5 * (0.1 * (whole - 2) + 0.9 * (whole + 1)), rel=1e-5)


@pytest.mark.parametrize("head", ["atss", "gfl"])
def test_every_score_begins_at_a_hundredth(head: str):
    detector = tiny(head).eval()
    assert detector.head.classifier.bias.sigmoid().tolist() == pytest.approx([0.01] * K, rel=1e-3)
    scores = detector.observe(scene()[0], need=Need(predictions=True)).stages[0].scores()
    assert scores.mean().item() == pytest.approx(0.01, rel=0.1)


def constant(head: str, values: Tensor) -> Predictions:
    """A detector's look at the scene where its regression says one and the same everywhere, times 2 on the second level."""
    detector = tiny(head).eval()
    with torch.no_grad():
        detector.head.regressor.weight.zero_()
        detector.head.regressor.bias.copy_(values.flatten())
        detector.head.scales[1] = 2.0
        return detector.observe(scene()[0], need=Need(predictions=True)).stages[0]


def test_atss_decodes_deltas_by_hand():
    # Anchors are squares of 8 strides about the cell's corner; centres move by 0.1, and sides by exp(0.2), a unit, at most 62.5 times.
    stage = constant("atss", torch.tensor([1.0, -2, 0.5, 30]))
    fine, coarse, _ = stage.layout.split(stage.boxes)
    for level, stride, scale in ((fine, 8, 1), (coarse, 16, 2)):
        side = 8.0 * stride
        x, y = 3 * stride + 0.1 * scale * side, 2 * stride - 0.2 * scale * side
        width, height = side * math.exp(0.1 * scale), side * 62.5
        expected = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        assert level[0, 2, 3, 0].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_gfl_decodes_distributions_by_hand():
    # Left 1, top 3, right 6 and bottom 16 strides from the cell's corner, each a sure thing.
    sure = 60.0 * torch.eye(17)[[1, 3, 6, 16]]
    stage = constant("gfl", sure)
    for level, stride in zip(stage.layout.split(stage.boxes), (8, 16, 32), strict=True):
        x, y = 2 * stride, 1 * stride
        assert level[0, 1, 2, 0].tolist() == pytest.approx(
            [x - stride, y - 3 * stride, x + 6 * stride, y + 16 * stride], rel=1e-5
        )


def test_gfl_boxes_are_in_single_precision_under_autocast():
    # A coordinate above 256 does not fit in the 8 bits of a bfloat16.
    detector = shake(tiny("gfl")).eval()
    batch, targets = scene()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            output = detector.observe(batch, targets, Need(predictions=True))
        stage = output.stages[0]
        levels = [level.reshape(-1, 4) for level in output.pyramids["neck"].anchors]
        strides = torch.cat(
            [torch.full((len(level), 1), 1.0 * stride) for level, stride in zip(levels, (8, 16, 32), strict=True)]
        )
        anchors = torch.cat(levels)
        expected = to_boxes(
            (anchors[:, :2] + anchors[:, 2:]) / 2, (stage.edges.softmax(-1) @ torch.arange(17.0)) * strides
        )
    assert stage.boxes.dtype == stage.edges.dtype == torch.float32
    assert stage.edges.std() > 0.01
    torch.testing.assert_close(stage.boxes, expected, rtol=1e-5, atol=1e-3)
    assert all(term.dtype == torch.float32 for term in output.losses.values())
