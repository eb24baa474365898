"""KD-DETR: the same points for both decoders, and the distance of their predictions."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from detdistill.errors import UserError
from detdistill.geometry import to_relative
from detdistill.losses import giou_distance
from detdistill.types import Predictions, QuerySet, TrainState
from tests.detectors.builders import scene, tiny
from tests.methods.pairs import built, method_inputs, pair


def made(**options: Any):
    """Returns the method, student, teacher, and the inputs of the method."""
    student, teacher = pair("deformable_detr")
    method = built("kddetr", student, teacher, **{"general": 7, **options})
    return method, student, teacher, method_inputs(method, student, teacher)


def state(seed: int = 0) -> TrainState:
    """Returns a state with a seeded generator."""
    return TrainState(generator=torch.Generator().manual_seed(seed))


def test_terms_are_zero_for_equal_detectors():
    method, student, teacher, _ = made()
    student.load_state_dict(teacher.state_dict())
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    assert all(term.abs() < 1e-4 for term in method(student_output, teacher_output, targets, state()).values())


def test_only_the_student_gets_a_gradient():
    method, student, teacher, (student_output, teacher_output, targets) = made()
    terms = method(student_output, teacher_output, targets, state())
    assert terms.keys() == {"class", "box", "giou"}
    assert all(term > 0 for term in terms.values())
    sum(terms.values()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())
    assert student.model.model.query_position_embeddings.weight.grad is None  # the student's own queries are not used


def test_the_distance_by_hand():
    """The points have the weights 0.8 and 0.2. KL of p = 0.8 against 0.5: 0.8 ln 1.6 + 0.2 ln 0.4.

    The second point agrees. The first box is off by 10 of 100 pixels in x.
    """
    method, *_ = made(specific=False)
    valid, boxes = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[[10.0, 10, 30, 30], [50, 50, 90, 90]]])
    logits = torch.tensor([0.8, 0.2]).logit().view(1, 2, 1)
    teacher = Predictions(logits, "sigmoid", boxes, valid)
    student = Predictions(
        torch.tensor([[[0.0], [logits[0, 1, 0]]]]),
        "sigmoid",
        boxes + torch.tensor([[[10.0, 0, 10, 0], [0, 0, 0, 0]]]),
        valid,
    )
    terms = method.stage_terms(student, teacher, torch.tensor([[100, 100]]))
    assert terms["class"].item() == pytest.approx(0.8 * 0.192745, abs=1e-5)
    assert terms["box"].item() == pytest.approx(5 * 0.8 * 0.1, abs=1e-5)
    assert terms["giou"].item() == pytest.approx(2 * 0.8 * giou_distance(student.boxes, boxes)[0, 0].item(), abs=1e-5)
    unweighted = made(specific=False, foreground=False)[0].stage_terms(student, teacher, torch.tensor([[100, 100]]))
    assert unweighted["box"].item() == pytest.approx(5 * 0.5 * 0.1, abs=1e-5)


def test_the_specific_points_are_the_teachers_queries():
    method, _, _, (student_output, teacher_output, targets) = made(general=0, stages="last")
    teacher_queries, sizes = teacher_output.queries.own, scene()[0].sizes
    points = QuerySet(teacher_queries.content, teacher_queries.position)
    student_boxes = to_relative(student_output.queries.redecode(points)[-1].boxes, sizes)
    teacher_boxes = to_relative(teacher_output.stages[-1].boxes, sizes)
    trust = teacher_output.stages[-1].scores().amax(-1)
    expected = 5 * ((student_boxes - teacher_boxes).abs().sum(-1) * trust).sum() / trust.sum()
    torch.testing.assert_close(method(student_output, teacher_output, targets, state())["box"], expected)


def test_general_points_are_drawn_from_the_generator_of_the_state():
    method, _, _, (student_output, teacher_output, targets) = made(specific=False)
    first, same_seed, other_seed = (method(student_output, teacher_output, targets, state(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same_seed[name]) for name in first)
    assert first["box"] != other_seed["box"]
    torch.manual_seed(3)
    terms = method(student_output, teacher_output, targets)
    torch.manual_seed(3)
    assert torch.equal(method(student_output, teacher_output, targets)["box"], terms["box"])


@pytest.mark.parametrize(
    ("student_head", "teacher_head"),
    [
        ("conditional_detr", "deformable_detr"),
        ("dab_detr", "rt_detr"),
        ("detr", "deformable_detr"),
        ("adamixer", "rt_detr"),
    ],
)
def test_a_student_can_read_fewer_parts_of_a_query_than_the_teacher(student_head: str, teacher_head: str):
    student, teacher = pair(student_head, teacher_head)
    method = built("kddetr", student, teacher, general=7)
    terms = method(*method_inputs(method, student, teacher), state())
    assert all(term.isfinite() and term > 0 for term in terms.values())


def test_unsupported_pairs_are_refused():
    deformable = tiny("deformable_detr")
    with pytest.raises(UserError, match=r"fcos.*no queries"):
        built("kddetr", tiny("fcos"), deformable)
    with pytest.raises(UserError, match="there are no points"):
        built("kddetr", deformable, deformable, general=0, specific=False)
    with pytest.raises(UserError, match="all its weights are 0"):
        built("kddetr", deformable, deformable, weight_class=0, weight_box=0, weight_giou=0)
    with pytest.raises(UserError, match="have width 64"):
        built("kddetr", tiny("deformable_detr", channels=64), deformable)
    kind = type(built("kddetr", deformable, deformable))
    with pytest.raises(
        UserError, match=r"reads the reference of queries.* build both with --model\.two-stage, or neither"
    ):
        built("kddetr", tiny("deformable_detr", two_stage=True), deformable)
    only_boxes = replace(deformable.info.queries, parts=frozenset({"reference"}))
    message = r"reads the content and position of queries, which .* \(other\) do not have; use a teacher of"
    with pytest.raises(UserError, match=message):
        kind.build(kind.Config(), deformable.info, replace(deformable.info, kind="other", queries=only_boxes))
    with pytest.raises(UserError, match="no class in common"):
        kind.build(kind.Config(), deformable.info, replace(deformable.info, classes=("cat",)))
