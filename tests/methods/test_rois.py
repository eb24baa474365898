"""What RoI methods stand on: box codes equal to the host's, rows that both heads classified, their distances, refusals."""

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
from tests.detectors.builders import CLASSES, scene, tiny
from tests.methods.pairs import built
from tests.methods.two_stage import duo, renamed, seen, with_boxes

OURS = ("kd", "dkd", "proposal_kd", "crosskd_roi", "chen2017")


def example() -> Rows:
    """Three regions, two classes, double precision: labels 0, 1 and background."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return Rows(draw(3, 3), draw(3, 3), draw(3, 2, 4), draw(3, 2, 4), torch.tensor([0, 1, 2]), draw(3, 4))


def observed(student_classes: dict[str, str] | None = None, teacher_classes: dict[str, str] | None = None):
    student, teacher = duo()
    student = student if student_classes is None else renamed(student, student_classes)
    teacher = teacher if teacher_classes is None else renamed(teacher, teacher_classes)
    shared = SharedClasses.between("proposal_kd", student.info, teacher.info)
    return (*seen(built("proposal_kd", student, teacher), student, teacher), shared)


# ---- the host's box codes


def test_assigned_codes_are_those_of_the_hosts_losses():
    detector = duo()[0]
    batch, targets = scene()
    batch = replace(
        batch, sizes=torch.tensor([[64, 96], [64, 96]])
    )  # the host samples anchors in the padding too, which are not valid here
    torch.manual_seed(0)
    output = detector.observe(batch, targets)
    rpn, roi = output.stages
    anchors = torch.cat([level.reshape(-1, 4) for level in output.pyramids["neck"].anchors])
    places = {"rpn_box_reg": (rpn, anchors.expand(2, -1, 4)), "box_reg": (roi, output.proposals.boxes)}
    for name, (stage, origins) in places.items():
        assignment = stage.assignment
        own = assignment.positive & assignment.valid
        assert own.sum() > 3
        assert not assignment.deltas[~assignment.positive].any()
        coder = detector.model.rpn.box_coder if name == "rpn_box_reg" else detector.model.roi_heads.box_coder
        decoded = coder.decode(assignment.deltas[own], [origins[own]])[:, 0]
        boxes = torch.cat(
            [own_boxes[rows[rows >= 0]] for own_boxes, rows in zip(targets.boxes, assignment.matched, strict=True)]
        )
        torch.testing.assert_close(decoded, boxes, rtol=1e-4, atol=1e-3)
        guess = stage.deltas[own]
        if name == "box_reg":
            labels = targets.labels[0][assignment.matched[own]]
            guess = guess[torch.arange(len(guess)), labels]
        # The host's sum over positives, divided by all sampled rows.
        expected = F.smooth_l1_loss(guess, assignment.deltas[own], beta=1 / 9, reduction="sum") / assignment.valid.sum()
        torch.testing.assert_close(output.losses[name], expected)


def test_codes_stay_finite_without_targets():
    batch, nothing = scene(objects=False)
    for stage in duo()[0].observe(batch, nothing).stages:
        assert stage.assignment.deltas.shape == (*stage.valid.shape, 4)
        assert not stage.assignment.deltas.any()


def test_what_the_second_stage_reads_is_known_beforehand():
    detector = tiny("faster_rcnn", strides=(4, 8, 16, 32, 64))
    assert detector.info.proposals.strides == (4, 8, 16, 32)  # the fifth level is for the RPN alone
    assert detector.info.proposals.code == (10.0, 10.0, 5.0, 5.0)
    batch, _ = scene()
    levels, _ = detector._look(batch)
    assert tuple(detector._pooled(levels).values()) == detector.info.proposals.strides
    assert tiny("fcos").info.proposals is None


# ---- rows


def test_rows_are_the_students_samples_through_both_heads():
    student, teacher, targets, shared = observed()
    rows = roi_rows(student, teacher, targets, shared)
    stage, kept = student.stages[-1], student.stages[-1].valid
    assert torch.equal(rows.student[:, :-1], stage.logits[kept])
    assert torch.equal(rows.student[:, -1], stage.background[kept])
    taught = teacher.proposals.classify(student.proposals.boxes)
    torch.testing.assert_close(rows.teacher[:, :-1], taught.logits[kept])
    torch.testing.assert_close(rows.teacher_deltas, taught.deltas[kept])
    assert not rows.teacher.requires_grad and not rows.teacher_deltas.requires_grad
    matched = stage.assignment.matched[kept]
    assert rows.labels[rows.foreground].tolist() == [[0, 2, 1][index] for index in matched.tolist() if index >= 0]
    assert rows.foreground.sum() == (matched >= 0).sum() > 3
    assert set(rows.labels.tolist()) == {0, 1, 2, 3}
    assert torch.equal(rows.aims, stage.assignment.deltas[kept])


def test_another_order_of_classes_changes_nothing():
    order = {"cross": "cross", "disc": "disc", "square": "square"}
    student, teacher, targets, shared = observed()
    mixed = observed(teacher_classes=order)
    assert mixed[3].teacher == (1, 2, 0)
    plain, turned = roi_rows(student, teacher, targets, shared), roi_rows(*mixed)
    for name in ("student", "teacher", "student_deltas", "teacher_deltas", "labels", "aims"):
        torch.testing.assert_close(getattr(turned, name), getattr(plain, name), msg=name)


def test_a_class_that_one_side_lacks_is_background_to_both():
    # The teacher knows crosses as rings: crosses join both backgrounds, and a region sampled for one is labelled so.
    plain = roi_rows(*observed())
    rows = roi_rows(*observed(teacher_classes={"disc": "disc", "square": "square", "ring": "cross"}))
    assert rows.student.shape[1] == 3
    assert rows.student_deltas.shape[1] == rows.teacher_deltas.shape[1] == 2
    for name in ("student", "teacher"):
        before, after = getattr(plain, name).softmax(-1), getattr(rows, name).softmax(-1)
        torch.testing.assert_close(after[:, :2], before[:, :2])
        torch.testing.assert_close(after[:, 2], before[:, 2] + before[:, 3])
    crosses = plain.labels == CLASSES.index("cross")
    assert crosses.any()
    assert (rows.labels[crosses] == 2).all()
    assert not rows.aims[crosses].any()
    assert torch.equal(rows.labels[~crosses], plain.labels[~crosses].clamp(max=2))


def test_rows_that_a_head_left_out_are_left_out():
    student, teacher, targets, shared = observed()
    boxes = student.proposals.boxes.clone()
    boxes[0, 4, 2] = boxes[0, 4, 0]  # no width: the teacher answers nothing
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
    silent = replace(stage, valid=stage.valid.clone().index_fill(1, torch.tensor([5]), False))
    left = rois.paired_rows(silent, teacher.proposals.classify(student.proposals.boxes), student, targets, shared)
    assert len(left.labels) == len(whole.labels) - 2  # the fifth of each image


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("proposals", [True, False])
def test_a_batch_without_objects_is_finite(name: str, proposals: bool):
    student, teacher = duo()
    if not proposals:
        student.model.rpn.score_thresh = 1.1
    method = built(name, student, teacher)
    mine, lesson, targets = seen(method, student, teacher, scene(objects=False))
    assert bool(mine.proposals.valid.any()) == proposals
    terms = method(mine, lesson, targets)
    assert all(term.isfinite() and term.shape == () for term in terms.values())
    if not proposals:
        assert all(term == 0 for part, term in terms.items() if part not in ("hint", "rpn_class"))
    sum(terms.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


# ---- terms


def test_terms_by_hand():
    # Class: teacher (1/2, 1/4, 1/4), student uniform: ln 3 - 1.5 ln 2, and an equal row; T = 1, mean of two rows.
    # Box: the likeliest classes are 0 and 1, 1/2 each; gaps 4 * 1 and 4 * 2; the codes of other classes, 50 apart, don't count.
    teacher = torch.tensor([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0]]).log()
    student = torch.stack([torch.zeros(3), teacher[1] + 5])
    theirs = torch.zeros(2, 2, 4)
    mine = torch.stack([torch.tensor([1.0, 50]), torch.tensor([50.0, 2])])[..., None].expand(2, 2, 4)
    rows = Rows(student, teacher, mine, theirs, torch.tensor([2, 2]), torch.zeros(2, 4))
    terms = roi_terms(rows, RoIConfig(weight_class=2.0, weight_box=3.0, temperature=1.0))
    divergence = torch.tensor(3.0).log() - 1.5 * torch.tensor(2.0).log()
    torch.testing.assert_close(terms["class"], 2 * divergence / 2)
    torch.testing.assert_close(terms["box"], torch.tensor(3 * (0.5 * 4 + 0.5 * 8) / (4 * 1.0)))
    unsure = Rows(student[:1], teacher[:1], mine[:1], theirs[:1], rows.labels[:1], rows.aims[:1])
    assert roi_terms(unsure, RoIConfig(weight_box=1.0))["box"].item() == pytest.approx(
        0.5
    )  # the sum of trust is at least 1


def test_a_background_that_is_surest_still_weighs_by_the_likeliest_class():
    rows = example()
    sure = replace(rows, teacher=torch.tensor([[0.0, 1.0, 9.0]]).double().expand(3, 3))
    trust = sure.teacher.softmax(-1)[0, 1]
    gaps = (rows.student_deltas[:, 1] - rows.teacher_deltas[:, 1]).abs().sum(-1)
    torch.testing.assert_close(roi_terms(sure, RoIConfig())["box"], (trust * gaps).sum() / 4)


def test_terms_have_their_gradient_and_their_minimum():
    rows = example()

    def total(logits: Tensor, deltas: Tensor) -> Tensor:
        return sum(roi_terms(replace(rows, student=logits, student_deltas=deltas), RoIConfig()).values())

    assert gradcheck(total, (rows.student.requires_grad_(), rows.student_deltas.requires_grad_()))
    assert total(rows.teacher, rows.teacher_deltas).abs() < 1e-12


def test_counts_are_averaged_over_processes_and_a_doubled_batch_counts_once():
    rows = example()
    rows = replace(rows, teacher=rows.teacher * 3)  # the sum of trust is beyond its floor
    twice = Rows(*(torch.cat([getattr(rows, name)] * 2) for name in Rows.__dataclass_fields__))
    alone = roi_terms(rows, RoIConfig())
    with patch.object(rois, "mean_over_processes", lambda count: count / 2):
        shared = roi_terms(rows, RoIConfig())
    for name, value in roi_terms(twice, RoIConfig()).items():
        torch.testing.assert_close(value, alone[name])
        torch.testing.assert_close(shared[name], 2 * value)


def test_rpn_rows_are_its_samples():
    student, teacher = duo()
    mine, lesson, _ = seen(built("chen2017", student, teacher), student, teacher)
    first = mine.stages[0]
    rows = rpn_rows(first, lesson.stages[0])
    valid = first.assignment.valid
    assert 0 < len(rows.labels) == valid.sum() < valid.numel()
    torch.testing.assert_close(rows.student.softmax(-1)[:, 0], first.logits[valid][:, 0].sigmoid())
    assert torch.equal(rows.foreground, first.assignment.positive[valid])
    assert torch.equal(rows.teacher_deltas[:, 0], lesson.stages[0].deltas[valid])
    assert not rows.teacher.requires_grad and not rows.teacher_deltas.requires_grad


# ---- refusals


@pytest.mark.parametrize("name", OURS)
def test_what_they_cannot_serve_is_refused_at_build(name: str):
    two, dense = tiny("faster_rcnn").info, tiny("gfl").info
    kind = METHODS[name]
    for student, teacher, message in (
        (dense, two, f"method {name}: the student \\(gfl\\) has no RoI head; take faster_rcnn or mask_rcnn for both"),
        (two, dense, f"method {name}: the teacher \\(gfl\\) has no RoI head"),
        (replace(two, activation="sigmoid"), two, "the student .faster_rcnn. has no softmax over its classes"),
        (two, replace(two, classes=("ring", "oval", "star")), "no class in common"),
    ):
        with pytest.raises(UserError, match=message):
            kind.build(kind.Config(), student, teacher)


@pytest.mark.parametrize("name", ["proposal_kd", "chen2017"])
def test_codes_of_another_scale_are_refused(name: str):
    info, kind = tiny("faster_rcnn").info, METHODS[name]
    other = replace(info, proposals=replace(info.proposals, code=(1.0, 1.0, 1.0, 1.0)))
    with pytest.raises(
        UserError, match=r"weighted by \(10.0, 10.0, 5.0, 5.0\) \(student\) and \(1.0, .*build both with the same"
    ):
        kind.build(kind.Config(), info, other)
    without = {"weight_box": 0} if name == "proposal_kd" else {"nu": 0}
    kind.build(kind.Config(**without), info, other)  # no code is compared
    METHODS["crosskd_roi"].build(RoIConfig(), info, other)  # nor here: both are the teacher's
