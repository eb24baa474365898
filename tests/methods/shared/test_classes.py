"""Shared classes: which columns are compared, where the probability of other classes goes, and what changes nothing."""

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
from tests.methods.pairs import built, method_inputs, pair

DENSE = ("crosskd", "mimicking", "bckd", "dist", "ld")
TWO_STAGE = ("dist", "kd", "dkd", "proposal_kd", "crosskd_roi", "chen2017")
LOGITS = {"crosskd", "mimicking", "bckd"}  # compare each class by itself, with sigmoid scores


def info(*classes: str) -> DetectorInfo:
    """Returns a detector with these classes."""
    return DetectorInfo("gfl", classes, (8,), {"neck": 8}, "sigmoid")


def predictions(logits: torch.Tensor, background: torch.Tensor | None = None, **parts: torch.Tensor) -> Predictions:
    """Returns predictions (B, N, K) with boxes of 0; softmax if there is a background (B, N), else sigmoid."""
    rows = logits.shape[:2]
    activation = "sigmoid" if background is None else "softmax"
    return Predictions(
        logits, activation, torch.zeros(*rows, 4), torch.ones(rows, dtype=torch.bool), background=background, **parts
    )


def with_classes(teacher: Detector, *classes: str) -> Detector:
    """Returns a copy of a GFL teacher with these classes in this order. New classes get random weights."""
    copy = shake(tiny("gfl", seed=2))
    copy.load_state_dict(teacher.state_dict())
    old_classes, old = teacher.info.classes, teacher.head.classifier
    torch.manual_seed(5)
    new = nn.Conv2d(old.in_channels, len(classes), 3, padding=1)
    with torch.no_grad():
        for column, name in enumerate(classes):
            if name in old_classes:
                old_column = old_classes.index(name)
                new.weight[column], new.bias[column] = old.weight[old_column], old.bias[old_column]
    copy.head.classifier = new
    copy.info = replace(copy.info, classes=classes)
    return copy.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("student_classes", "teacher_classes", "columns"),
    [
        (("a", "b"), ("a", "b"), ((0, 1), (0, 1))),
        (("a", "b"), ("b", "a"), ((0, 1), (1, 0))),  # in the student's order
        (("a", "b", "c"), ("c", "a"), ((0, 2), (1, 0))),
        (("b",), ("a", "b", "c"), ((0,), (1,))),
        (("a", "b"), ("c", "b"), ((1,), (1,))),
    ],
)
def test_columns_are_matched_by_name(student_classes: tuple, teacher_classes: tuple, columns: tuple):
    shared = SharedClasses.between("x", info(*student_classes), info(*teacher_classes))
    assert (shared.student, shared.teacher) == columns
    student_logits = torch.arange(len(student_classes)) + 10.0
    teacher_logits = torch.arange(len(teacher_classes)) + 20.0
    student_row = shared.of_student(predictions(student_logits.expand(1, 2, -1))).logits[0, 0]
    teacher_row = shared.of_teacher(predictions(teacher_logits.expand(1, 2, -1))).logits[0, 0]
    assert student_row.tolist() == [10.0 + column for column in columns[0]]
    assert teacher_row.tolist() == [20.0 + column for column in columns[1]]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_probability_of_other_classes_is_added_to_the_background(data: st.DataObject):
    size = data.draw(st.integers(1, 6))
    columns = data.draw(
        st.permutations(range(size)).flatmap(lambda order: st.integers(1, size).map(lambda count: order[:count]))
    )
    values = data.draw(st.lists(st.floats(-30, 30), min_size=size + 1, max_size=size + 1))
    logits = torch.tensor(values, dtype=torch.float64)[None, None]
    before = predictions(logits[..., :-1], logits[..., -1])
    after = select(before, columns, size)
    torch.testing.assert_close(after.scores(), before.scores()[..., columns])
    scores = torch.cat([after.logits, after.background[..., None]], dim=-1).softmax(-1)
    dropped = [column for column in range(size) if column not in columns]
    scores_before = logits.softmax(-1)
    torch.testing.assert_close(scores[..., -1], scores_before[..., -1] + scores_before[..., dropped].sum(-1))
    torch.testing.assert_close(scores.sum(-1), torch.ones(1, 1, dtype=torch.float64))


def test_box_codes_per_class_are_selected_like_the_logits():
    deltas = torch.arange(3.0)[None, None, :, None].expand(1, 2, 3, 4)
    logits = torch.zeros(1, 2, 3)
    assert select(predictions(logits, logits[..., 0], deltas=deltas), (2, 0), 3).deltas[0, 0, :, 0].tolist() == [2, 0]
    one_code = predictions(logits, logits[..., 0], deltas=deltas[:, :, 0])
    assert torch.equal(select(one_code, (2, 0), 3).deltas, one_code.deltas)


def test_labels_become_indices_among_the_shared_classes():
    shared = SharedClasses.between("x", info("a", "b", "c", "d"), info("d", "b"))  # shared: b, d
    assert shared.labels(torch.tensor([[0, 1], [2, 3], [-1, -2]])).tolist() == [[-1, 0], [-1, 1], [-1, -1]]
    matched = torch.tensor([[1, -1, 0, -2], [-1, -1, 2, 0]])
    targets = Targets((torch.zeros(2, 4), torch.zeros(3, 4)), (torch.tensor([3, 0]), torch.tensor([1, 1, 2])))
    assignment = Assignment(matched, matched > -2, torch.tensor(4.0))
    assert shared.assigned(assignment, targets).tolist() == [[-1, -1, 1, -1], [-1, -1, -1, 0]]
    no_objects = Targets((torch.zeros(0, 4),) * 2, (torch.zeros(0, dtype=torch.long),) * 2)
    assert (shared.assigned(replace(assignment, matched=matched.clamp(max=-1)), no_objects) == -1).all()


@pytest.mark.parametrize("name", DENSE)
def test_the_order_of_the_teachers_classes_changes_nothing(name: str):
    student, teacher = pair("gfl")
    reordered = with_classes(teacher, *reversed(CLASSES))
    method, reordered_method = built(name, student, teacher), built(name, student, reordered)
    terms = method(*method_inputs(method, student, teacher))
    reordered_terms = reordered_method(*method_inputs(reordered_method, student, reordered))
    assert terms.keys() == reordered_terms.keys()
    for part, term in terms.items():
        torch.testing.assert_close(reordered_terms[part], term, rtol=1e-4, atol=1e-6)
    if name != "crosskd":  # in CrossKD both sides come from the teacher's head, so their columns always agree
        # Without the mapping of columns the term changes.
        student_output, _, targets = method_inputs(method, student, teacher)
        _, reordered_output, _ = method_inputs(method, student, reordered)
        part = "relations" if name == "dist" else "class"
        assert (method(student_output, reordered_output, targets)[part] - terms[part]).abs() > 1e-3


@pytest.mark.parametrize("name", DENSE)
def test_a_class_that_only_the_teacher_has_changes_nothing(name: str):
    student, teacher = pair("gfl")
    extended = with_classes(teacher, "ring", *CLASSES)
    method, extended_method = built(name, student, teacher), built(name, student, extended)
    terms = method(*method_inputs(method, student, teacher))
    extended_terms = extended_method(*method_inputs(extended_method, student, extended))
    for part, term in terms.items():
        torch.testing.assert_close(extended_terms[part], term, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(LOGITS))
def test_a_class_that_only_the_student_has_gets_no_gradient(name: str):
    student, teacher = pair("gfl")
    teacher = with_classes(teacher, "cross", "disc")
    method = built(name, student, teacher)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    if name == "crosskd":  # both sides come from the teacher's head, which does not have the class
        assert method(student_output, teacher_output, targets)["class"].isfinite()
        return
    predictions = student_output.stages[-1]
    logits = predictions.logits.detach().requires_grad_()
    student_output = replace(student_output, stages=(replace(predictions, logits=logits),))
    method(student_output, teacher_output, targets)["class"].backward()
    assert logits.grad[..., CLASSES.index("square")].abs().sum() == 0
    assert (logits.grad[..., [CLASSES.index("disc"), CLASSES.index("cross")]].abs().sum((0, 1)) > 0).all()


@pytest.mark.parametrize(
    ("head", "name"), [("gfl", name) for name in DENSE] + [("faster_rcnn", name) for name in TWO_STAGE]
)
def test_detectors_without_a_common_class_are_refused(head: str, name: str):
    student = tiny(head).info
    teacher = replace(student, classes=("ring", "oval"))
    kind = METHODS[name]
    message = f"method {name}: no class in common, the student has disc, square, cross, the teacher ring, oval; rename"
    with pytest.raises(UserError, match=message):
        kind.build(kind.Config(), student, teacher)


def test_a_feature_method_does_not_read_classes():
    student, teacher = pair("gfl")
    terms = []
    for some_teacher in (teacher, with_classes(teacher, "ring", "oval")):
        method = built("pkd", student, some_teacher)
        terms.append(method(*method_inputs(method, student, some_teacher))["features"])
    torch.testing.assert_close(terms[1], terms[0])
