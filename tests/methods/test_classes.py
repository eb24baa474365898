"""Class spaces: which columns are compared, where unshared probability goes, and that order and surplus change nothing."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from detdistill.errors import UserError
from detdistill.methods import METHODS
from detdistill.methods.shared.classes import SharedClasses, select
from detdistill.types import Assignment, Detector, DetectorInfo, Predictions, Targets
from tests.detectors.builders import CLASSES, shake, tiny
from tests.methods.pairs import built, looks, pair

DENSE, TWO_STAGE = (
    ("crosskd", "mimicking", "bckd", "dist", "ld"),
    ("dist", "kd", "dkd", "proposal_kd", "crosskd_roi", "chen2017"),
)
LOGITS = {"crosskd", "mimicking", "bckd"}  # each class by itself, in a head with sigmoids


def info(*classes: str) -> DetectorInfo:
    return DetectorInfo("gfl", classes, (8,), {"neck": 8}, "sigmoid")


def predictions(logits: torch.Tensor, background: torch.Tensor | None = None, **parts: torch.Tensor) -> Predictions:
    rows = logits.shape[:2]
    activation = "sigmoid" if background is None else "softmax"
    return Predictions(
        logits, activation, torch.zeros(*rows, 4), torch.ones(rows, dtype=torch.bool), background=background, **parts
    )


def relabelled(teacher: Detector, *classes: str) -> Detector:
    """The same GFL teacher that names its classes in this order; a class it did not know gets random weights, one not named is gone."""
    other = shake(tiny("gfl", seed=2))
    other.load_state_dict(teacher.state_dict())
    known, old = teacher.info.classes, teacher.head.classifier
    torch.manual_seed(5)
    new = nn.Conv2d(old.in_channels, len(classes), 3, padding=1)
    with torch.no_grad():
        for column, name in enumerate(classes):
            if name in known:
                new.weight[column], new.bias[column] = old.weight[known.index(name)], old.bias[known.index(name)]
    other.head.classifier = new
    other.info = replace(other.info, classes=classes)
    return other.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("mine", "theirs", "columns"),
    [
        (("a", "b"), ("a", "b"), ((0, 1), (0, 1))),
        (("a", "b"), ("b", "a"), ((0, 1), (1, 0))),  # in the student's order
        (("a", "b", "c"), ("c", "a"), ((0, 2), (1, 0))),
        (("b",), ("a", "b", "c"), ((0,), (1,))),
        (("a", "b"), ("c", "b"), ((1,), (1,))),
    ],
)
def test_columns_are_matched_by_name(mine: tuple, theirs: tuple, columns: tuple):
    shared = SharedClasses.between("x", info(*mine), info(*theirs))
    assert (shared.student, shared.teacher) == columns
    student, teacher = torch.arange(len(mine)) + 10.0, torch.arange(len(theirs)) + 20.0
    assert shared.of_student(predictions(student.expand(1, 2, -1))).logits[0, 0].tolist() == [
        10.0 + place for place in columns[0]
    ]
    assert shared.of_teacher(predictions(teacher.expand(1, 2, -1))).logits[0, 0].tolist() == [
        20.0 + place for place in columns[1]
    ]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_probability_of_unshared_classes_joins_the_background(data: st.DataObject):
    size = data.draw(st.integers(1, 6))
    columns = data.draw(
        st.permutations(range(size)).flatmap(lambda order: st.integers(1, size).map(lambda count: order[:count]))
    )
    values = data.draw(st.lists(st.floats(-30, 30), min_size=size + 1, max_size=size + 1))
    logits = torch.tensor(values, dtype=torch.float64)[None, None]
    before = predictions(logits[..., :-1], logits[..., -1])
    after = select(before, columns, size)
    torch.testing.assert_close(after.scores(), before.scores()[..., columns])
    every = torch.cat([after.logits, after.background[..., None]], dim=-1).softmax(-1)
    others = [column for column in range(size) if column not in columns]
    kept = logits.softmax(-1)
    torch.testing.assert_close(every[..., -1], kept[..., -1] + kept[..., others].sum(-1))
    torch.testing.assert_close(every.sum(-1), torch.ones(1, 1, dtype=torch.float64))


def test_box_codes_of_each_class_go_with_their_columns():
    deltas = torch.arange(3.0)[None, None, :, None].expand(1, 2, 3, 4)
    logits = torch.zeros(1, 2, 3)
    assert select(predictions(logits, logits[..., 0], deltas=deltas), (2, 0), 3).deltas[0, 0, :, 0].tolist() == [2, 0]
    one_code = predictions(logits, logits[..., 0], deltas=deltas[:, :, 0])
    assert torch.equal(select(one_code, (2, 0), 3).deltas, one_code.deltas)


def test_labels_go_to_their_place_among_the_shared():
    shared = SharedClasses.between("x", info("a", "b", "c", "d"), info("d", "b"))  # shared: b, d
    assert shared.labels(torch.tensor([[0, 1], [2, 3], [-1, -2]])).tolist() == [[-1, 0], [-1, 1], [-1, -1]]
    matched = torch.tensor([[1, -1, 0, -2], [-1, -1, 2, 0]])
    targets = Targets((torch.zeros(2, 4), torch.zeros(3, 4)), (torch.tensor([3, 0]), torch.tensor([1, 1, 2])))
    assignment = Assignment(matched, matched > -2, torch.tensor(4.0))
    assert shared.assigned(assignment, targets).tolist() == [[-1, -1, 1, -1], [-1, -1, -1, 0]]
    nothing = Targets((torch.zeros(0, 4),) * 2, (torch.zeros(0, dtype=torch.long),) * 2)
    assert (shared.assigned(replace(assignment, matched=matched.clamp(max=-1)), nothing) == -1).all()


@pytest.mark.parametrize("name", DENSE)
def test_the_order_of_the_teachers_classes_changes_nothing(name: str):
    student, teacher = pair("gfl")
    turned = relabelled(teacher, *reversed(CLASSES))
    terms = []
    for lecturer in (teacher, turned):
        method = built(name, student, lecturer)
        terms.append(method(*looks(method, student, lecturer)))
    assert terms[0].keys() == terms[1].keys()
    for part, term in terms[0].items():
        torch.testing.assert_close(terms[1][part], term, rtol=1e-4, atol=1e-6)
    if (
        name != "crosskd"
    ):  # both of whose sides come out of the teacher's head; the others would change, were columns compared by their place
        blind = built(name, student, teacher)
        _, lesson, _ = looks(blind, student, turned)
        mine, _, targets = looks(blind, student, teacher)
        part = "relations" if name == "dist" else "class"
        assert (blind(mine, lesson, targets)[part] - terms[0][part]).abs() > 1e-3


@pytest.mark.parametrize("name", DENSE)
def test_a_class_that_only_the_teacher_knows_changes_nothing(name: str):
    student, teacher = pair("gfl")
    more = relabelled(teacher, "ring", *CLASSES)
    terms = []
    for lecturer in (teacher, more):
        method = built(name, student, lecturer)
        terms.append(method(*looks(method, student, lecturer)))
    for part, term in terms[0].items():
        torch.testing.assert_close(terms[1][part], term, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(LOGITS))
def test_a_class_that_only_the_student_knows_is_left_to_the_labels(name: str):
    student, teacher = pair("gfl")
    fewer = relabelled(teacher, "cross", "disc")
    method = built(name, student, fewer)
    mine, theirs, targets = looks(method, student, fewer)
    if name == "crosskd":  # its guess comes out of the teacher's head, which has no such class
        assert method(mine, theirs, targets)["class"].isfinite()
        return
    logits = mine.stages[-1].logits.detach().requires_grad_()
    method(replace(mine, stages=(replace(mine.stages[-1], logits=logits),)), theirs, targets)["class"].backward()
    assert logits.grad[..., CLASSES.index("square")].abs().sum() == 0
    assert (logits.grad[..., [CLASSES.index("disc"), CLASSES.index("cross")]].abs().sum((0, 1)) > 0).all()


@pytest.mark.parametrize(
    ("head", "name"), [("gfl", name) for name in DENSE] + [("faster_rcnn", name) for name in TWO_STAGE]
)
def test_nothing_in_common_is_refused(head: str, name: str):
    student = tiny(head).info
    teacher = replace(student, classes=("ring", "oval"))
    kind = METHODS[name]
    with pytest.raises(
        UserError,
        match=f"method {name}: no class in common, the student knows disc, square, cross, the teacher ring, oval; a feature",
    ):
        kind.build(kind.Config(), student, teacher)


def test_a_feature_method_never_looks():
    student, teacher = pair("gfl")
    other = relabelled(teacher, "ring", "oval")
    first, second = (built("pkd", student, lecturer) for lecturer in (teacher, other))
    terms = [
        method(*looks(method, student, lecturer))["features"]
        for method, lecturer in ((first, teacher), (second, other))
    ]
    torch.testing.assert_close(*terms)
