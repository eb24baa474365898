"""Parts of the RoI methods: box codes equal to the host's, rows that both heads classified, distances, refusals."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

from detdistill.errors import UserError
from detdistill.methods import METHODS
from detdistill.methods.chen2017 import rpn_rows
from detdistill.methods.shared import rois
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.rois import RoIConfig, Rows, roi_rows, roi_terms
from detdistill.types import DetectorOutput, Targets
from tests.detectors.builders import CLASSES, scene, tiny
from tests.methods.pairs import built
from tests.methods.two_stage import sampled_outputs, two_stage_pair, with_boxes, with_classes

ROI_METHODS = ("kd", "dkd", "proposal_kd", "crosskd_roi", "chen2017")


def example() -> Rows:
    """Returns rows of three regions and two classes, in double precision, with labels 0, 1 and background."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return Rows(draw(3, 3), draw(3, 3), draw(3, 2, 4), draw(3, 2, 4), torch.tensor([0, 1, 2]), draw(3, 4))


def arguments_of_roi_rows(
    student_classes: dict[str, str] | None = None, teacher_classes: dict[str, str] | None = None
) -> tuple[DetectorOutput, DetectorOutput, Targets, SharedClasses]:
    """Returns the arguments of `roi_rows` for a pair with these classes, new to old."""
    student, teacher = two_stage_pair()
    student = student if student_classes is None else with_classes(student, student_classes)
    teacher = teacher if teacher_classes is None else with_classes(teacher, teacher_classes)
    shared = SharedClasses.between("proposal_kd", student.info, teacher.info)
    return (*sampled_outputs(built("proposal_kd", student, teacher), student, teacher), shared)


# ---- the host's box codes


def test_assigned_codes_are_those_of_the_hosts_losses():
    detector = two_stage_pair()[0]
    batch, targets = scene()
    # Without padding, because the host also samples anchors in the padding, which are not valid here.
    batch = replace(batch, sizes=torch.tensor([[64, 96], [64, 96]]))
    torch.manual_seed(0)
    output = detector.observe(batch, targets)
    rpn, roi = output.stages
    anchors = torch.cat([level.reshape(-1, 4) for level in output.pyramids["neck"].anchors])
    stages = {"rpn_box_reg": (rpn, anchors.expand(2, -1, 4)), "box_reg": (roi, output.proposals.boxes)}
    for name, (stage, origins) in stages.items():
        assignment = stage.assignment
        sampled = assignment.positive & assignment.valid
        assert sampled.sum() > 3
        assert not assignment.deltas[~assignment.positive].any()
        coder = detector.model.rpn.box_coder if name == "rpn_box_reg" else detector.model.roi_heads.box_coder
        decoded = coder.decode(assignment.deltas[sampled], [origins[sampled]])[:, 0]
        images = zip(targets.boxes, assignment.matched, strict=True)
        boxes = torch.cat([image_boxes[matched[matched >= 0]] for image_boxes, matched in images])
        torch.testing.assert_close(decoded, boxes, rtol=1e-4, atol=1e-3)
        deltas = stage.deltas[sampled]
        if name == "box_reg":
            labels = targets.labels[0][assignment.matched[sampled]]
            deltas = deltas[torch.arange(len(deltas)), labels]
        # The host's loss: the sum over positives, divided by the number of all sampled rows.
        total = F.smooth_l1_loss(deltas, assignment.deltas[sampled], beta=1 / 9, reduction="sum")
        torch.testing.assert_close(output.losses[name], total / assignment.valid.sum())


def test_codes_stay_finite_without_targets():
    batch, no_objects = scene(objects=False)
    for stage in two_stage_pair()[0].observe(batch, no_objects).stages:
        assert stage.assignment.deltas.shape == (*stage.valid.shape, 4)
        assert not stage.assignment.deltas.any()


def test_the_info_of_the_second_stage_agrees_with_the_detector():
    detector = tiny("faster_rcnn", strides=(4, 8, 16, 32, 64))
    assert detector.info.proposals.strides == (4, 8, 16, 32)  # only the RPN reads the fifth level
    assert detector.info.proposals.code == (10.0, 10.0, 5.0, 5.0)
    batch, _ = scene()
    levels, _, _ = detector._pyramid(batch)
    assert tuple(detector.roi_head.pooled_strides(levels).values()) == detector.info.proposals.strides
    assert tiny("fcos").info.proposals is None


# ---- rows


def test_rows_are_the_students_samples_through_both_heads():
    student, teacher, targets, shared = arguments_of_roi_rows()
    rows = roi_rows(student, teacher, targets, shared)
    stage, kept = student.stages[-1], student.stages[-1].valid
    assert torch.equal(rows.student[:, :-1], stage.logits[kept])
    assert torch.equal(rows.student[:, -1], stage.background[kept])
    teacher_predictions = teacher.proposals.classify(student.proposals.boxes)
    torch.testing.assert_close(rows.teacher[:, :-1], teacher_predictions.logits[kept])
    torch.testing.assert_close(rows.teacher_deltas, teacher_predictions.deltas[kept])
    assert not rows.teacher.requires_grad and not rows.teacher_deltas.requires_grad
    matched = stage.assignment.matched[kept]
    assert rows.labels[rows.foreground].tolist() == [[0, 2, 1][index] for index in matched.tolist() if index >= 0]
    assert rows.foreground.sum() == (matched >= 0).sum() > 3
    assert set(rows.labels.tolist()) == {0, 1, 2, 3}
    assert torch.equal(rows.target_deltas, stage.assignment.deltas[kept])


def test_another_order_of_classes_changes_nothing():
    reordered_arguments = arguments_of_roi_rows(teacher_classes={"cross": "cross", "disc": "disc", "square": "square"})
    assert reordered_arguments[3].teacher == (1, 2, 0)
    rows, reordered = roi_rows(*arguments_of_roi_rows()), roi_rows(*reordered_arguments)
    for name in ("student", "teacher", "student_deltas", "teacher_deltas", "labels", "target_deltas"):
        torch.testing.assert_close(getattr(reordered, name), getattr(rows, name), msg=name)


def test_a_class_that_one_side_lacks_is_background_for_both():
    # The teacher calls crosses rings: crosses join the background of both, also as labels.
    plain = roi_rows(*arguments_of_roi_rows())
    teacher_classes = {"disc": "disc", "square": "square", "ring": "cross"}
    rows = roi_rows(*arguments_of_roi_rows(teacher_classes=teacher_classes))
    assert rows.student.shape[1] == 3
    assert rows.student_deltas.shape[1] == rows.teacher_deltas.shape[1] == 2
    for name in ("student", "teacher"):
        before, after = getattr(plain, name).softmax(-1), getattr(rows, name).softmax(-1)
        torch.testing.assert_close(after[:, :2], before[:, :2])
        torch.testing.assert_close(after[:, 2], before[:, 2] + before[:, 3])
    crosses = plain.labels == CLASSES.index("cross")
    assert crosses.any()
    assert (rows.labels[crosses] == 2).all()
    assert not rows.target_deltas[crosses].any()
    assert torch.equal(rows.labels[~crosses], plain.labels[~crosses].clamp(max=2))


def test_rows_that_are_not_valid_for_a_head_are_left_out():
    student, teacher, targets, shared = arguments_of_roi_rows()
    boxes = student.proposals.boxes.clone()
    boxes[0, 4, 2] = boxes[0, 4, 0]  # no width: not valid for the teacher
    boxes[1, 2] = 7.0  # a point
    rows = roi_rows(with_boxes(student, boxes), teacher, targets, shared)
    whole = roi_rows(student, teacher, targets, shared)
    first = int(student.stages[-1].valid[0].sum())
    kept = torch.ones(len(whole.labels), dtype=torch.bool)
    kept[[4, first + 2]] = False
    assert torch.equal(rows.student, whole.student[kept])
    assert torch.equal(rows.labels, whole.labels[kept])
    torch.testing.assert_close(rows.teacher, whole.teacher[kept])
    stage = student.stages[-1]
    without_row = replace(stage, valid=stage.valid.clone().index_fill(1, torch.tensor([5]), False))
    teacher_predictions = teacher.proposals.classify(student.proposals.boxes)
    rows = rois.paired_rows(without_row, teacher_predictions, student, targets, shared)
    assert len(rows.labels) == len(whole.labels) - 2  # without row 5 of each image


@pytest.mark.parametrize("name", ROI_METHODS)
@pytest.mark.parametrize("proposals", [True, False])
def test_a_batch_without_objects_is_finite(name: str, proposals: bool):
    student, teacher = two_stage_pair()
    if not proposals:
        student.model.rpn.score_thresh = 1.1
    method = built(name, student, teacher)
    student_output, teacher_output, targets = sampled_outputs(method, student, teacher, scene(objects=False))
    assert bool(student_output.proposals.valid.any()) == proposals
    terms = method(student_output, teacher_output, targets)
    assert all(term.isfinite() and term.shape == () for term in terms.values())
    if not proposals:
        assert all(term == 0 for part, term in terms.items() if part not in ("hint", "rpn_class"))
    sum(terms.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


# ---- terms


def test_terms_by_hand():
    # Class: teacher (1/2, 1/4, 1/4), student uniform: ln 3 - 1.5 ln 2. The second row is equal. T = 1, two rows.
    # Box: the most probable classes are 0 and 1, each with 1/2; distances 4 * 1 and 4 * 2. The codes of the other
    # classes, 50 apart, do not count.
    teacher = torch.tensor([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0]]).log()
    student = torch.stack([torch.zeros(3), teacher[1] + 5])
    teacher_deltas = torch.zeros(2, 2, 4)
    student_deltas = torch.tensor([[1.0, 50], [50.0, 2]])[..., None].expand(2, 2, 4)
    rows = Rows(student, teacher, student_deltas, teacher_deltas, torch.tensor([2, 2]), torch.zeros(2, 4))
    terms = roi_terms(rows, RoIConfig(weight_class=2.0, weight_box=3.0, temperature=1.0))
    divergence = torch.tensor(3.0).log() - 1.5 * torch.tensor(2.0).log()
    torch.testing.assert_close(terms["class"], 2 * divergence / 2)
    torch.testing.assert_close(terms["box"], torch.tensor(3 * (0.5 * 4 + 0.5 * 8) / (4 * 1.0)))
    first = Rows(*(getattr(rows, name)[:1] for name in Rows.__dataclass_fields__))
    # The sum of trust, 1/2, is raised to 1.
    assert roi_terms(first, RoIConfig(weight_box=1.0))["box"].item() == pytest.approx(0.5)


def test_the_weight_is_the_score_of_the_best_class_even_if_the_background_is_more_probable():
    rows = example()
    background = replace(rows, teacher=torch.tensor([[0.0, 1.0, 9.0]]).double().expand(3, 3))
    trust = background.teacher.softmax(-1)[0, 1]
    distances = (rows.student_deltas[:, 1] - rows.teacher_deltas[:, 1]).abs().sum(-1)
    torch.testing.assert_close(roi_terms(background, RoIConfig())["box"], (trust * distances).sum() / 4)


def test_terms_pass_gradcheck_and_have_their_minimum_at_the_teacher():
    rows = example()

    def total(logits: Tensor, deltas: Tensor) -> Tensor:
        return sum(roi_terms(replace(rows, student=logits, student_deltas=deltas), RoIConfig()).values())

    assert gradcheck(total, (rows.student.requires_grad_(), rows.student_deltas.requires_grad_()))
    assert total(rows.teacher, rows.teacher_deltas).abs() < 1e-12


def test_divisors_are_averaged_over_processes_and_a_doubled_batch_changes_nothing():
    rows = example()
    rows = replace(rows, teacher=rows.teacher * 3)  # so that the sum of trust is above 1
    doubled = Rows(*(torch.cat([getattr(rows, name)] * 2) for name in Rows.__dataclass_fields__))
    terms = roi_terms(rows, RoIConfig())
    with patch.object(rois, "mean_over_processes", lambda count: count / 2):
        halved = roi_terms(rows, RoIConfig())
    for name, value in roi_terms(doubled, RoIConfig()).items():
        torch.testing.assert_close(value, terms[name])
        torch.testing.assert_close(halved[name], 2 * value)


def test_rpn_rows_are_the_samples_of_the_rpn_loss():
    student, teacher = two_stage_pair()
    student_output, teacher_output, _ = sampled_outputs(built("chen2017", student, teacher), student, teacher)
    first = student_output.stages[0]
    rows = rpn_rows(first, teacher_output.stages[0])
    valid = first.assignment.valid
    assert 0 < len(rows.labels) == valid.sum() < valid.numel()
    torch.testing.assert_close(rows.student.softmax(-1)[:, 0], first.logits[valid][:, 0].sigmoid())
    assert torch.equal(rows.foreground, first.assignment.positive[valid])
    assert torch.equal(rows.teacher_deltas[:, 0], teacher_output.stages[0].deltas[valid])
    assert not rows.teacher.requires_grad and not rows.teacher_deltas.requires_grad


# ---- refusals


@pytest.mark.parametrize("name", ROI_METHODS)
def test_unsupported_pairs_are_refused_at_build(name: str):
    two, dense = tiny("faster_rcnn").info, tiny("gfl").info
    kind = METHODS[name]
    for student, teacher, message in (
        (dense, two, f"method {name}: the student \\(gfl\\) has no RoI head; use faster_rcnn or mask_rcnn for both"),
        (two, dense, f"method {name}: the teacher \\(gfl\\) has no RoI head"),
        (replace(two, activation="sigmoid"), two, "the student .faster_rcnn. has no softmax over its classes"),
        (two, replace(two, classes=("ring", "oval", "star")), "no class in common"),
    ):
        with pytest.raises(UserError, match=message):
            kind.build(kind.Config(), student, teacher)


@pytest.mark.parametrize("name", ["proposal_kd", "chen2017"])
def test_box_codes_with_other_weights_are_refused(name: str):
    info, kind = tiny("faster_rcnn").info, METHODS[name]
    teacher = replace(info, proposals=replace(info.proposals, code=(1.0, 1.0, 1.0, 1.0)))
    message = r"weighted by \(10.0, 10.0, 5.0, 5.0\) \(student\) and \(1.0, .*build both with the same"
    with pytest.raises(UserError, match=message):
        kind.build(kind.Config(), info, teacher)
    without_boxes = {"weight_box": 0} if name == "proposal_kd" else {"nu": 0}
    kind.build(kind.Config(**without_boxes), info, teacher)
    METHODS["crosskd_roi"].build(RoIConfig(), info, teacher)  # compares only codes of the teacher's head
