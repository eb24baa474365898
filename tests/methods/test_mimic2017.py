"""Mimic: the formula on proposals of either side, from two-stage and one-stage detectors."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from detdistill.errors import UserError
from detdistill.geometry import pool_rois
from detdistill.losses import region_distance
from detdistill.methods.mimic2017 import Mimic2017, Mimic2017Config
from detdistill.types import DetectorOutput, Need, Proposals
from tests.detectors.builders import tiny
from tests.methods.instances import STRIDES, info, look, maps, padded, targets
from tests.methods.pairs import built, looks, pair

BOXES = torch.tensor([[[8.0, 8, 40, 40], [0, 0, 30, 90]], [[60, 60, 100, 90], [0, 0, 0, 0]]])
VALID = torch.tensor([[True, True], [True, False]])


def synthetic(
    *widths: int, boxes: torch.Tensor = BOXES, valid: torch.Tensor = VALID
) -> tuple[DetectorOutput, DetectorOutput]:
    """Two pyramids; the student's detector proposes `boxes`."""
    student, teacher = (look(width, seed) for seed, width in enumerate(widths))
    return replace(student, proposals=Proposals(boxes, valid, lambda boxes: None)), teacher


def method_on(*widths: int, **options: object) -> Mimic2017:
    torch.manual_seed(0)
    student, teacher = (info(width, embedding=8) for width in widths)
    return Mimic2017.build(Mimic2017Config(**options), student, teacher)


def identical(method: Mimic2017) -> Mimic2017:
    """Its convolutions made to pass everything through."""
    for connector in method.levels.connectors:
        nn.init.dirac_(connector.weight)
        nn.init.zeros_(connector.bias)
    return method


def test_half_the_mean_square_over_proposals_by_hand():
    # Two maps of constants 5 and 2 under identity connectors: every number of every region differs by 3: 9 / 2.
    method = identical(method_on(4, 4, weight=2.0))
    student, teacher = synthetic(4, 4)
    for output, value in ((student, 5.0), (teacher, 2.0)):
        for level in maps(output):
            level.data.fill_(value)
    assert method(student, teacher, targets([], []))["regions"].item() == pytest.approx(2 * 9 / 2)


def test_it_equals_the_formula_on_pooled_regions():
    method = method_on(4, 6, size=3)
    student, teacher = synthetic(4, 6)
    boxes = [BOXES[0], BOXES[1, :1]]
    carried = [connector(level) for connector, level in zip(method.levels.connectors, maps(student), strict=True)]
    u, v = pool_rois(maps(teacher), STRIDES, boxes, size=3), pool_rois(carried, STRIDES, boxes, size=3)
    expected = sum((u[i] - v[i]).square().sum() / u[i].numel() for i in range(3)) / (2 * 3)
    torch.testing.assert_close(method(student, teacher, targets([], []))["regions"], expected)
    assert method.need == Need(pyramids=frozenset({"neck"}))


def test_zero_for_itself_no_gradient_to_the_teacher_and_none_for_the_background():
    method = identical(method_on(4, 4))
    student, teacher = synthetic(4, 4)
    same = replace(student, pyramids=teacher.pyramids)
    assert method(same, teacher, targets([], []))["regions"] == 0
    term = method(student, teacher, targets([], []))["regions"]
    term.backward()
    assert all(level.grad is None for level in maps(teacher))
    cells = maps(student)[0].grad.abs().sum((0, 1)) > 0
    assert cells[1:11, 0:5].any() and not cells[13:, 13:].any()  # no proposal reaches the lower right corner
    maps(student)[0].data[:, :, 13:, 13:] += 100
    assert torch.equal(method(student, teacher, targets([], []))["regions"], term)


def test_the_same_proposals_twice_change_nothing_and_none_give_zero():
    method = method_on(4, 6)
    once = method(*synthetic(4, 6), targets([], []))["regions"]
    twice = method(*synthetic(4, 6, boxes=BOXES.repeat(1, 2, 1), valid=VALID.repeat(1, 2)), targets([], []))["regions"]
    torch.testing.assert_close(once, twice)
    student, teacher = synthetic(4, 6, valid=torch.zeros_like(VALID))
    nothing = method(student, teacher, targets([], []))["regions"]
    nothing.backward()
    assert nothing == 0 and not maps(student)[0].grad.any()


def test_most_bounds_the_proposals_of_an_image():
    method, given = method_on(4, 6, most=1), targets([], [])
    first = VALID & torch.tensor([True, False])
    torch.testing.assert_close(method(*synthetic(4, 6), given), method_on(4, 6)(*synthetic(4, 6, valid=first), given))


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_a_two_stage_pair_takes_either_sides_proposals(whose: str):
    student, teacher = pair("faster_rcnn")
    method = built("mimic2017", student, teacher, proposals=whose)
    assert method.need.proposals == (whose == "teacher") and not method.need.predictions
    torch.manual_seed(0)
    mine, theirs, given = looks(method, student, teacher)
    chosen = (mine if whose == "student" else theirs).proposals
    assert sum(len(boxes) for boxes in method._proposals(mine if whose == "student" else theirs)) == int(
        chosen.valid.sum()
    )
    term = method(mine, theirs, given)["regions"]
    term.backward()
    assert term > 0 and all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("head", ["fcos", "deformable_detr"])
def test_others_propose_what_they_predict(head: str):
    student, teacher = pair(head)
    method = built("mimic2017", student, teacher, most=9, overlap=0.5)
    mine, theirs, given = looks(method, student, teacher)
    proposed = method._proposals(mine)
    stage, sizes = mine.stages[-1], mine.pyramids["neck"].sizes
    for image, boxes in enumerate(proposed):
        assert 0 < len(boxes) <= 9
        assert (boxes >= 0).all() and (boxes <= sizes[image].flip(0).repeat(2)).all()
        overlaps = box_iou(boxes, boxes) - torch.eye(len(boxes))
        assert overlaps.max() <= 0.5
        best = stage.scores()[image].amax(-1).masked_fill(~stage.valid[image], 0).argmax()
        limits = sizes[image].flip(0).repeat(2).float()
        torch.testing.assert_close(boxes[0], stage.boxes[image, best].detach().clamp(min=0).minimum(limits))
    assert method(mine, theirs, given)["regions"].isfinite()
    taught = built("mimic2017", student, teacher, proposals="teacher")
    assert taught.need.predictions and taught(*looks(taught, student, teacher))["regions"] > 0


def test_padding_the_batch_further_changes_nothing():
    method, given = identical(method_on(4, 4)), targets([], [])
    outputs = synthetic(4, 4)
    wider = tuple(padded(output) for output in outputs)
    torch.testing.assert_close(method(*wider, given), method(*outputs, given))


def test_levels_that_cannot_be_paired_are_refused():
    lone = tiny("fcos").info
    with pytest.raises(UserError, match="no level in common"):
        Mimic2017.build(Mimic2017Config(), replace(lone, strides=(4,)), lone)


def test_region_distance_asks_for_equal_shapes():
    assert region_distance(torch.ones(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)).tolist() == [1, 1]
    with pytest.raises(ValueError, match="one shape"):
        region_distance(torch.ones(2, 3, 2, 2), torch.zeros(1, 3, 2, 2))
