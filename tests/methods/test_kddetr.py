"""KD-DETR: the same points for both decoders, and the distance of their answers."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from detdistill.errors import UserError
from detdistill.geometry import to_relative
from detdistill.losses import giou_distance
from detdistill.types import Predictions, QuerySet, TrainState
from tests.detectors.builders import scene, tiny
from tests.methods.pairs import built, looks, pair


def made(**options: Any):
    student, teacher = pair("deformable_detr")
    method = built("kddetr", student, teacher, **{"general": 7, **options})
    return method, student, teacher, looks(method, student, teacher)


def state(seed: int = 0) -> TrainState:
    return TrainState(generator=torch.Generator().manual_seed(seed))


def test_it_is_zero_where_the_teacher_is_the_student():
    method, student, teacher, _ = made()
    student.load_state_dict(teacher.state_dict())
    mine, theirs, targets = looks(method, student, teacher)
    assert all(term.abs() < 1e-4 for term in method(mine, theirs, targets, state()).values())


def test_it_teaches_the_student_and_not_the_teacher():
    method, student, teacher, (mine, theirs, targets) = made()
    terms = method(mine, theirs, targets, state())
    assert terms.keys() == {"class", "box", "giou"}
    assert all(term > 0 for term in terms.values())
    sum(terms.values()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())
    assert student.model.model.query_position_embeddings.weight.grad is None  # the own queries were not asked


def test_the_distance_by_hand():
    """Weights 0.8 and 0.2 of the points. KL of p = 0.8 against 0.5: 0.8 ln 1.6 + 0.2 ln 0.4; the second agrees. Boxes: 10 of 100 px off in x of the first."""
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
    terms = method.distances(student, teacher, torch.tensor([[100, 100]]))
    assert terms["class"].item() == pytest.approx(0.8 * 0.192745, abs=1e-5)
    assert terms["box"].item() == pytest.approx(5 * 0.8 * 0.1, abs=1e-5)
    assert terms["giou"].item() == pytest.approx(2 * 0.8 * giou_distance(student.boxes, boxes)[0, 0].item(), abs=1e-5)
    even = made(specific=False, foreground=False)[0].distances(student, teacher, torch.tensor([[100, 100]]))
    assert even["box"].item() == pytest.approx(5 * 0.5 * 0.1, abs=1e-5)


def test_the_specific_points_are_the_teachers_queries():
    method, _, _, (mine, theirs, targets) = made(general=0, stages="last")
    own = theirs.queries.own
    answers = mine.queries.redecode(QuerySet(own.content, own.position))[-1]
    trust = theirs.stages[-1].scores().amax(-1)
    apart = (
        (to_relative(answers.boxes, scene()[0].sizes) - to_relative(theirs.stages[-1].boxes, scene()[0].sizes))
        .abs()
        .sum(-1)
    )
    expected = 5 * (apart * trust).sum() / trust.sum()
    torch.testing.assert_close(method(mine, theirs, targets, state())["box"], expected)


def test_general_points_are_drawn_anew_from_the_runs_generator():
    method, _, _, (mine, theirs, targets) = made(specific=False)
    first, again, other = (method(mine, theirs, targets, state(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first["box"] != other["box"]
    torch.manual_seed(3)
    drawn = method(mine, theirs, targets)
    torch.manual_seed(3)
    assert torch.equal(method(mine, theirs, targets)["box"], drawn["box"])


@pytest.mark.parametrize(
    ("head", "teacher"),
    [
        ("conditional_detr", "deformable_detr"),
        ("dab_detr", "rt_detr"),
        ("detr", "deformable_detr"),
        ("adamixer", "rt_detr"),
    ],
)
def test_a_student_that_reads_fewer_parts_of_a_query_learns_from_all_points(head: str, teacher: str):
    student, lecturer = pair(head, teacher)
    method = built("kddetr", student, lecturer, general=7)
    terms = method(*looks(method, student, lecturer), state())
    assert all(term.isfinite() and term > 0 for term in terms.values())


def test_what_it_cannot_serve_is_refused():
    deformable = tiny("deformable_detr")
    with pytest.raises(UserError, match=r"fcos.*no queries"):
        built("kddetr", tiny("fcos"), deformable)
    with pytest.raises(UserError, match="no points"):
        built("kddetr", deformable, deformable, general=0, specific=False)
    with pytest.raises(UserError, match="all its weights are 0"):
        built("kddetr", deformable, deformable, weight_class=0, weight_box=0, weight_giou=0)
    with pytest.raises(UserError, match="64 wide"):
        built("kddetr", tiny("deformable_detr", channels=64), deformable)
    kind = type(built("kddetr", deformable, deformable))
    with pytest.raises(
        UserError, match=r"reads the reference of queries.* build both with --model\.two-stage, or neither"
    ):
        built("kddetr", tiny("deformable_detr", two_stage=True), deformable)
    boxes = replace(
        deformable.info, kind="other", queries=replace(deformable.info.queries, parts=frozenset({"reference"}))
    )
    with pytest.raises(
        UserError,
        match="reads the content and position of queries, which the teacher's other hasn't got; take a teacher of",
    ):
        kind.build(kind.Config(), deformable.info, boxes)
    with pytest.raises(UserError, match="no class in common"):
        kind.build(kind.Config(), deformable.info, replace(deformable.info, classes=("cat",)))
