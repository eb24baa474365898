"""Chen 2017: golden numbers, both stages, the meaning of mu, the adapter, refusals."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from detdistill.errors import UserError
from detdistill.methods import chen2017 as module
from detdistill.methods.chen2017 import Chen2017, Chen2017Config
from detdistill.methods.shared.rois import Rows
from detdistill.types import Need, Targets
from tests.detectors.builders import tiny
from tests.losses.inputs import wave
from tests.methods.pairs import built
from tests.methods.two_stage import (
    STUDENT,
    TEACHER,
    check_training,
    parts_with_gradient,
    sampled_outputs,
    two_stage_pair,
    with_classes,
)

# Box codes of the golden numbers.
STUDENT_CODES, TEACHER_CODES, TARGET_CODES = wave((5, 4), 0.7, 0.1), wave((5, 4), 1.1, 0.5), wave((5, 4), 0.3, 0.9)
TERMS = {"rpn_class", "rpn_box", "roi_class", "roi_box", "hint"}


def roi_terms_of(**options: float) -> dict[str, float]:
    """Returns the terms of the RoI head alone; the rows are those of the patched `roi_rows`."""
    info = tiny("faster_rcnn").info
    method = Chen2017.build(Chen2017Config(weight_rpn=0.0, weight_hint=0.0, **options), info, info)
    return {name: term.item() for name, term in method(None, None, Targets((), ())).items()}


@pytest.mark.parametrize(("mu", "ratio"), [(0.5, 1.0), (0.8, 0.25)])
def test_the_class_term_is_golden_times_the_ratio_of_soft_to_hard(
    mu: float, ratio: float, monkeypatch: pytest.MonkeyPatch
):
    # The golden number has the background first, rows have it last.
    codes = torch.zeros(4, 9, 4).double()
    rows = Rows(STUDENT.roll(-1, 1), TEACHER.roll(-1, 1), codes, codes, torch.full((4,), 9), torch.zeros(4, 4))
    monkeypatch.setattr(module, "roi_rows", lambda *_: rows)
    terms = roi_terms_of(mu=mu)
    assert terms["roi_class"] == pytest.approx(ratio * 4.077532721627643, rel=1e-9)
    assert terms["roi_box"] == 0  # no region has an object
    unweighted = roi_terms_of(mu=mu, background=1.0)
    assert unweighted["roi_class"] == pytest.approx(ratio * 3.860998022111025, rel=1e-9)


def test_the_box_term_is_golden_and_only_positives_add_to_it(monkeypatch: pytest.MonkeyPatch):
    logits = torch.zeros(5, 3).double()
    labels = torch.tensor([1, 0, 1, 1, 0])
    student_codes, teacher_codes = [
        torch.full((5, 2, 4), 50.0).double().index_put((torch.arange(5), labels), codes)
        for codes in (STUDENT_CODES, TEACHER_CODES)
    ]
    rows = Rows(logits, logits, student_codes, teacher_codes, labels, TARGET_CODES)
    monkeypatch.setattr(module, "roi_rows", lambda *_: rows)
    term = roi_terms_of(margin=0.01)["roi_box"]
    assert term == pytest.approx(0.5971444735661128, rel=1e-9)
    without_bound = roi_terms_of(margin=1e6)["roi_box"]
    assert without_bound == pytest.approx(0.5 * 3.2949687787974278, rel=1e-9)
    # A background row only adds to the number of rows: as many background rows as positives halve the term.
    doubled = Rows(
        *(torch.cat([values, values]) for values in (logits, logits, student_codes, teacher_codes)),
        torch.cat([labels, torch.full((5,), 2)]),
        torch.cat([TARGET_CODES, TARGET_CODES]),
    )
    monkeypatch.setattr(module, "roi_rows", lambda *_: doubled)
    assert roi_terms_of(margin=0.01)["roi_box"] == pytest.approx(term / 2, rel=1e-9)


def test_both_stages_compare_the_rows_of_the_students_losses():
    student, teacher = two_stage_pair()
    method = built("chen2017", student, teacher)
    assert method.need == Need(pyramids=frozenset({"neck"}), proposals=True, classify=True)
    student_output, teacher_output, targets = sampled_outputs(method, student, teacher)
    terms = method(student_output, teacher_output, targets)
    assert set(terms) == TERMS
    assert all(term.isfinite() and term > 0 for term in terms.values())
    student_rpn, teacher_rpn = student_output.stages[0], teacher_output.stages[0]
    assignment = student_rpn.assignment
    student_logits, teacher_scores = student_rpn.logits[..., 0], teacher_rpn.logits.sigmoid()[..., 0]
    soft = teacher_scores * F.logsigmoid(student_logits) + 1.5 * (1 - teacher_scores) * F.logsigmoid(-student_logits)
    torch.testing.assert_close(terms["rpn_class"], -0.25 * soft[assignment.valid].mean())
    student_error = (student_rpn.deltas - assignment.deltas).square().sum(-1)
    teacher_error = (teacher_rpn.deltas - assignment.deltas).square().sum(-1)
    is_worse = (student_error > teacher_error) & assignment.positive & assignment.valid
    torch.testing.assert_close(terms["rpn_box"], 0.5 * student_error[is_worse].sum() / assignment.valid.sum())


def test_every_part_of_the_student_learns_and_the_teacher_gets_no_gradient():
    student, teacher = two_stage_pair()
    method = built("chen2017", student, teacher)
    sum(method(*sampled_outputs(method, student, teacher)).values()).backward()
    assert parts_with_gradient(student) == {"neck", "rpn", "box_head", "classes", "codes"}
    assert parts_with_gradient(teacher) == set()
    assert all(p.grad is not None for p in method.parameters())


def test_terms_are_bounded_or_zero_if_the_student_is_the_teacher():
    _, teacher = two_stage_pair()
    method = built("chen2017", teacher, teacher)
    for connector in method.levels.connectors:
        torch.nn.init.dirac_(connector.weight)
        torch.nn.init.zeros_(connector.bias)
    terms = method(*sampled_outputs(method, teacher, teacher))
    assert terms["hint"].abs() < 1e-9
    assert terms["rpn_box"] < 1e-5  # the student is as good as the teacher, up to rounding
    assert terms["roi_box"] < 1e-5


def test_equal_widths_have_an_adapter_too_and_the_hint_is_a_mean():
    student, teacher = two_stage_pair()
    for hint, distance in (("l2", F.mse_loss), ("l1", F.l1_loss)):
        method = built("chen2017", student, teacher, hint=hint, weight_hint=2.0, weight_rpn=0.0, weight_roi=0.0)
        assert [tuple(p.shape) for p in method.parameters() if p.ndim == 4] == [(32, 32, 1, 1)] * 4
        assert method.need == Need(pyramids=frozenset({"neck"}))  # the teacher's heads are not run
        student_output, teacher_output, targets = sampled_outputs(method, student, teacher)
        student_levels, teacher_levels = student_output.pyramids["neck"].levels, teacher_output.pyramids["neck"].levels
        triples = zip(student_levels, teacher_levels, method.levels.connectors, strict=True)
        distances = [distance(connector(student), teacher) for student, teacher, connector in triples]
        expected = 2 * torch.stack(distances).mean()
        terms = method(student_output, teacher_output, targets)
        assert set(terms) == {"hint"}
        torch.testing.assert_close(terms["hint"], expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mu": 1.0}, {"rpn_box", "roi_box", "hint"}),
        ({"nu": 0.0}, {"rpn_class", "roi_class", "hint"}),
        ({"weight_rpn": 0.0}, {"roi_class", "roi_box", "hint"}),
        ({"weight_roi": 0.0}, {"rpn_class", "rpn_box", "hint"}),
        ({"mu": 1.0, "nu": 0.0}, {"hint"}),
        ({"weight_hint": 0.0}, TERMS - {"hint"}),
    ],
)
def test_terms_of_weight_0_are_left_out(options: dict, expected: set[str]):
    student, teacher = two_stage_pair()
    method = built("chen2017", student, teacher, **options)
    assert set(method(*sampled_outputs(method, student, teacher))) == expected


def test_different_anchors_are_refused_unless_the_rpn_terms_are_left_out():
    info, coarse = tiny("faster_rcnn").info, tiny("faster_rcnn", strides=(8, 16, 32)).info
    wider_anchors = tuple(tuple((w + 1, h) for w, h in cell) for cell in info.cell_anchors)
    wider = replace(info, grid=replace(info.grid, cell_anchors=wider_anchors))
    for student_info in (coarse, wider):
        with pytest.raises(UserError, match=r"the RPNs' anchors differ .* or set methods.chen2017.weight_rpn=0"):
            Chen2017.build(Chen2017Config(), student_info, info)
    student, teacher = two_stage_pair(strides=(8, 16, 32))
    method = built("chen2017", student, teacher, weight_rpn=0.0)
    assert method.need == Need(pyramids=frozenset({"neck"}), classify=True)  # the teacher's RPN is not run
    assert all(term.isfinite() for term in method(*sampled_outputs(method, student, teacher)).values())
    only_hint = Chen2017.build(Chen2017Config(mu=1.0, nu=0.0), coarse, info)  # reads no anchors
    assert only_hint.levels is not None


def test_weights_of_0_are_refused():
    info = tiny("faster_rcnn").info
    for options in ({"weight_rpn": 0.0, "weight_roi": 0.0}, {"mu": 1.0, "nu": 0.0}):
        with pytest.raises(UserError, match="method chen2017: all its weights are 0"):
            Chen2017.build(Chen2017Config(weight_hint=0.0, **options), info, info)


def test_the_order_of_classes_does_not_matter():
    student, teacher = two_stage_pair()
    reordered = with_classes(teacher, {"square": "square", "cross": "cross", "disc": "disc"})
    terms = []
    for some_teacher in (teacher, reordered):
        method = built("chen2017", student, some_teacher)
        terms.append(method(*sampled_outputs(method, student, some_teacher)))
    torch.testing.assert_close(terms[1], terms[0])


def test_training_with_it_works():
    check_training("chen2017")
