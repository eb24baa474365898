"""Mimic: the formula, with proposals of both detectors, two-stage and one-stage."""

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
from tests.methods.instances import STRIDES, info, maps, neck_output, padded, targets
from tests.methods.pairs import built, method_inputs, pair

BOXES = torch.tensor([[[8.0, 8, 40, 40], [0, 0, 30, 90]], [[60, 60, 100, 90], [0, 0, 0, 0]]])
VALID = torch.tensor([[True, True], [True, False]])


def synthetic(
    student_width: int, teacher_width: int, boxes: torch.Tensor = BOXES, valid: torch.Tensor = VALID
) -> tuple[DetectorOutput, DetectorOutput]:
    """Returns outputs with random maps of student and teacher. The student proposes `boxes`."""
    student, teacher = neck_output(student_width, 0), neck_output(teacher_width, 1)
    return replace(student, proposals=Proposals(boxes, valid, lambda boxes: None)), teacher


def method_on(student_width: int, teacher_width: int, **options: object) -> Mimic2017:
    """Returns the method for two-stage detectors of these widths."""
    torch.manual_seed(0)
    student, teacher = info(student_width, embedding=8), info(teacher_width, embedding=8)
    return Mimic2017.build(Mimic2017Config(**options), student, teacher)


def identity(method: Mimic2017) -> Mimic2017:
    """Returns the method with connectors that change nothing."""
    for connector in method.levels.connectors:
        nn.init.dirac_(connector.weight)
        nn.init.zeros_(connector.bias)
    return method


def test_the_term_is_half_the_mean_square_over_proposals_by_hand():
    # Two maps of constants 5 and 2 under identity connectors: every value of every region differs by 3: 9 / 2.
    method = identity(method_on(4, 4, weight=2.0))
    student, teacher = synthetic(4, 4)
    for output, value in ((student, 5.0), (teacher, 2.0)):
        for level in maps(output):
            level.data.fill_(value)
    assert method(student, teacher, targets([], []))["regions"].item() == pytest.approx(2 * 9 / 2)


def test_the_term_is_the_formula_on_pooled_regions():
    method = method_on(4, 6, size=3)
    student, teacher = synthetic(4, 6)
    boxes = [BOXES[0], BOXES[1, :1]]
    connected = [connector(level) for connector, level in zip(method.levels.connectors, maps(student), strict=True)]
    u, v = pool_rois(maps(teacher), STRIDES, boxes, size=3), pool_rois(connected, STRIDES, boxes, size=3)
    expected = sum((u[i] - v[i]).square().sum() / u[i].numel() for i in range(3)) / (2 * 3)
    torch.testing.assert_close(method(student, teacher, targets([], []))["regions"], expected)
    assert method.need == Need(pyramids=frozenset({"neck"}))


def test_zero_for_equal_maps_and_no_gradient_to_the_teacher_and_to_cells_outside_proposals():
    method = identity(method_on(4, 4))
    student, teacher = synthetic(4, 4)
    equal = replace(student, pyramids=teacher.pyramids)
    assert method(equal, teacher, targets([], []))["regions"] == 0
    term = method(student, teacher, targets([], []))["regions"]
    term.backward()
    assert all(level.grad is None for level in maps(teacher))
    cells = maps(student)[0].grad.abs().sum((0, 1)) > 0
    assert cells[1:11, 0:5].any() and not cells[13:, 13:].any()  # no proposal covers the lower right corner
    maps(student)[0].data[:, :, 13:, 13:] += 100
    assert torch.equal(method(student, teacher, targets([], []))["regions"], term)


def test_repeated_proposals_change_nothing_and_no_proposals_give_zero():
    method = method_on(4, 6)
    once = method(*synthetic(4, 6), targets([], []))["regions"]
    twice = method(*synthetic(4, 6, boxes=BOXES.repeat(1, 2, 1), valid=VALID.repeat(1, 2)), targets([], []))["regions"]
    torch.testing.assert_close(once, twice)
    student, teacher = synthetic(4, 6, valid=torch.zeros_like(VALID))
    term = method(student, teacher, targets([], []))["regions"]
    term.backward()
    assert term == 0 and not maps(student)[0].grad.any()


def test_most_limits_the_proposals_per_image():
    method, no_targets = method_on(4, 6, most=1), targets([], [])
    first = VALID & torch.tensor([True, False])
    expected = method_on(4, 6)(*synthetic(4, 6, valid=first), no_targets)
    torch.testing.assert_close(method(*synthetic(4, 6), no_targets), expected)


@pytest.mark.parametrize("proposer", ["student", "teacher"])
def test_a_two_stage_pair_can_use_the_proposals_of_either_detector(proposer: str):
    student, teacher = pair("faster_rcnn")
    method = built("mimic2017", student, teacher, proposals=proposer)
    assert method.need.proposals == (proposer == "teacher") and not method.need.predictions
    torch.manual_seed(0)
    student_output, teacher_output, ground_truth = method_inputs(method, student, teacher)
    proposing = student_output if proposer == "student" else teacher_output
    counts = proposing.proposals.valid.sum(-1).clamp(max=method.config.most)  # (B,)
    assert [len(boxes) for boxes in method.proposals(proposing)] == counts.tolist()
    term = method(student_output, teacher_output, ground_truth)["regions"]
    term.backward()
    assert term > 0 and all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("head", ["fcos", "deformable_detr"])
def test_detectors_without_proposals_propose_their_predictions(head: str):
    student, teacher = pair(head)
    method = built("mimic2017", student, teacher, most=9, overlap=0.5)
    student_output, teacher_output, ground_truth = method_inputs(method, student, teacher)
    proposals = method.proposals(student_output)
    stage, sizes = student_output.stages[-1], student_output.pyramids["neck"].sizes
    for image, boxes in enumerate(proposals):
        assert 0 < len(boxes) <= 9
        assert (boxes >= 0).all() and (boxes <= sizes[image].flip(0).repeat(2)).all()
        overlaps = box_iou(boxes, boxes) - torch.eye(len(boxes))
        assert overlaps.max() <= 0.5
        best = stage.scores()[image].amax(-1).masked_fill(~stage.valid[image], 0).argmax()
        limits = sizes[image].flip(0).repeat(2).float()
        torch.testing.assert_close(boxes[0], stage.boxes[image, best].detach().clamp(min=0).minimum(limits))
    assert method(student_output, teacher_output, ground_truth)["regions"].isfinite()
    from_teacher = built("mimic2017", student, teacher, proposals="teacher")
    assert from_teacher.need.predictions and from_teacher(*method_inputs(from_teacher, student, teacher))["regions"] > 0


def test_padding_the_batch_further_changes_nothing():
    method, no_targets = identity(method_on(4, 4)), targets([], [])
    student, teacher = synthetic(4, 4)
    torch.testing.assert_close(
        method(padded(student), padded(teacher), no_targets), method(student, teacher, no_targets)
    )


def test_levels_that_cannot_be_paired_are_refused():
    fcos = tiny("fcos").info
    with pytest.raises(UserError, match="no level in common"):
        Mimic2017.build(Mimic2017Config(), replace(fcos, strides=(4,)), fcos)


def test_region_distance_requires_equal_shapes():
    assert region_distance(torch.ones(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)).tolist() == [1, 1]
    with pytest.raises(ValueError, match="shape"):
        region_distance(torch.ones(2, 3, 2, 2), torch.zeros(1, 3, 2, 2))
