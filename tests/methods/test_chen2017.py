"""Chen 2017: golden numbers through the method, both stages, mu's meaning, the adapter that is always there, refusals."""

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
from tests.methods.pairs import built
from tests.methods.two_stage import STUDENT, TEACHER, check_teaching, duo, renamed, seen, touched, wave

GUESS, TAUGHT, AIM = wave((5, 4), 0.7, 0.1), wave((5, 4), 1.1, 0.5), wave((5, 4), 0.3, 0.9)
TERMS = {"rpn_class", "rpn_box", "roi_class", "roi_box", "hint"}


def alone(**options: float) -> Chen2017:
    info = tiny("faster_rcnn").info
    return Chen2017.build(Chen2017Config(weight_rpn=0.0, weight_hint=0.0, **options), info, info)


@pytest.mark.parametrize(("mu", "ratio"), [(0.5, 1.0), (0.8, 0.25)])
def test_the_class_term_is_golden_times_the_ratio_of_soft_to_hard(
    mu: float, ratio: float, monkeypatch: pytest.MonkeyPatch
):
    # The golden number has the background first, rows have it last.
    nothing = torch.zeros(4, 9, 4).double()
    rows = Rows(STUDENT.roll(-1, 1), TEACHER.roll(-1, 1), nothing, nothing, torch.full((4,), 9), torch.zeros(4, 4))
    monkeypatch.setattr(module, "roi_rows", lambda *_: rows)
    terms = alone(mu=mu)(None, None, Targets((), ()))
    assert terms["roi_class"].item() == pytest.approx(ratio * 4.077532721627643, rel=1e-9)
    assert terms["roi_box"] == 0  # no region has an object
    assert alone(mu=mu, background=1.0)(None, None, Targets((), ()))["roi_class"].item() == pytest.approx(
        ratio * 3.860998022111025, rel=1e-9
    )


def test_the_box_term_is_golden_and_positives_alone_make_it(monkeypatch: pytest.MonkeyPatch):
    logits = torch.zeros(5, 3).double()
    labels = torch.tensor([1, 0, 1, 1, 0])
    codes = [torch.full((5, 2, 4), 50.0).double().index_put((torch.arange(5), labels), own) for own in (GUESS, TAUGHT)]
    rows = Rows(logits, logits, *codes, labels, AIM)
    monkeypatch.setattr(module, "roi_rows", lambda *_: rows)
    method = alone(margin=0.01)
    whole = method(None, None, Targets((), ()))["roi_box"].item()
    assert whole == pytest.approx(0.5971444735661128, rel=1e-9)
    assert alone(margin=1e6)(None, None, Targets((), ()))["roi_box"].item() == pytest.approx(
        0.5 * 3.2949687787974278, rel=1e-9
    )  # no bound
    # A background row joins the number of rows and nothing else: as many times as the rows of the classes, half the value.
    rows = Rows(
        *(torch.cat([own, own]) for own in (logits, logits, *codes)),
        torch.cat([labels, torch.full((5,), 2)]),
        torch.cat([AIM, AIM]),
    )
    assert method(None, None, Targets((), ()))["roi_box"].item() == pytest.approx(whole / 2, rel=1e-9)


def test_both_stages_answer_on_the_students_rows():
    student, teacher = duo()
    method = built("chen2017", student, teacher)
    assert method.need == Need(pyramids=frozenset({"neck"}), proposals=True, classify=True)
    mine, lesson, targets = seen(method, student, teacher)
    terms = method(mine, lesson, targets)
    assert set(terms) == TERMS
    assert all(term.isfinite() and term > 0 for term in terms.values())
    first, other = mine.stages[0], lesson.stages[0]
    valid, positive = first.assignment.valid, first.assignment.positive
    target = other.logits.sigmoid()[..., 0]
    soft = target * F.logsigmoid(first.logits[..., 0]) + 1.5 * (1 - target) * F.logsigmoid(-first.logits[..., 0])
    torch.testing.assert_close(terms["rpn_class"], -0.25 * soft[valid].mean())
    gaps = [(stage.deltas - first.assignment.deltas).square().sum(-1) for stage in (first, other)]
    worse = (gaps[0] > gaps[1]) & positive & valid
    torch.testing.assert_close(terms["rpn_box"], 0.5 * gaps[0][worse].sum() / valid.sum())


def test_every_part_of_the_student_learns_and_none_of_the_teacher():
    student, teacher = duo()
    method = built("chen2017", student, teacher)
    sum(method(*seen(method, student, teacher)).values()).backward()
    assert touched(student) == {"neck", "rpn", "box_head", "classes", "codes"}
    assert touched(teacher) == set()
    assert all(p.grad is not None for p in method.parameters())


def test_teacher_as_student_is_bounded_and_a_copied_hint_is_zero():
    _, teacher = duo()
    method = built("chen2017", teacher, teacher)
    for connector in method.levels.connectors:
        torch.nn.init.dirac_(connector.weight)
        torch.nn.init.zeros_(connector.bias)
    terms = method(*seen(method, teacher, teacher))
    assert terms["hint"].abs() < 1e-9
    assert terms["rpn_box"] < 1e-5  # no worse than the teacher, up to rounding
    assert terms["roi_box"] < 1e-5


def test_the_adapter_is_there_for_equal_widths_too_and_the_hint_is_a_mean():
    student, teacher = duo()
    for hint, distance in (("l2", F.mse_loss), ("l1", F.l1_loss)):
        method = built("chen2017", student, teacher, hint=hint, weight_hint=2.0, weight_rpn=0.0, weight_roi=0.0)
        assert [tuple(p.shape) for p in method.parameters() if p.ndim == 4] == [(32, 32, 1, 1)] * 4
        assert method.need == Need(pyramids=frozenset({"neck"}))  # no head of the teacher
        mine, lesson, targets = seen(method, student, teacher)
        levels = zip(
            mine.pyramids["neck"].levels, lesson.pyramids["neck"].levels, method.levels.connectors, strict=True
        )
        expected = 2 * torch.stack([distance(adapt(guess), taught) for guess, taught, adapt in levels]).mean()
        terms = method(mine, lesson, targets)
        assert set(terms) == {"hint"}
        torch.testing.assert_close(terms["hint"], expected)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"mu": 1.0}, {"rpn_box", "roi_box", "hint"}),
        ({"nu": 0.0}, {"rpn_class", "roi_class", "hint"}),
        ({"weight_rpn": 0.0}, {"roi_class", "roi_box", "hint"}),
        ({"weight_roi": 0.0}, {"rpn_class", "rpn_box", "hint"}),
        ({"mu": 1.0, "nu": 0.0}, {"hint"}),
        ({"weight_hint": 0.0}, TERMS - {"hint"}),
    ],
)
def test_what_weighs_nothing_is_left_out(options: dict, left: set[str]):
    student, teacher = duo()
    method = built("chen2017", student, teacher, **options)
    assert set(method(*seen(method, student, teacher))) == left


def test_other_anchors_are_refused_unless_the_rpn_is_left_out():
    info, coarse = tiny("faster_rcnn").info, tiny("faster_rcnn", strides=(8, 16, 32)).info
    cells = tuple(tuple((w + 1, h) for w, h in cell) for cell in info.cell_anchors)
    wider = replace(info, grid=replace(info.grid, cell_anchors=cells))
    for other in (coarse, wider):
        with pytest.raises(UserError, match=r"the RPNs' anchors differ .* or set methods.chen2017.weight_rpn=0"):
            Chen2017.build(Chen2017Config(), other, info)
    student, teacher = duo(strides=(8, 16, 32))
    method = built("chen2017", student, teacher, weight_rpn=0.0)
    assert method.need == Need(pyramids=frozenset({"neck"}), classify=True)  # the teacher's RPN is not run
    assert all(term.isfinite() for term in method(*seen(method, student, teacher)).values())
    assert (
        Chen2017.build(Chen2017Config(mu=1.0, nu=0.0), coarse, info).levels is not None
    )  # a hint alone reads no anchors


def test_weights_of_nothing_are_refused():
    info = tiny("faster_rcnn").info
    for options in ({"weight_rpn": 0.0, "weight_roi": 0.0}, {"mu": 1.0, "nu": 0.0}):
        with pytest.raises(UserError, match="method chen2017: all its weights are 0"):
            Chen2017.build(Chen2017Config(weight_hint=0.0, **options), info, info)


def test_the_order_of_classes_does_not_matter():
    student, teacher = duo()
    mixed = renamed(teacher, {"square": "square", "cross": "cross", "disc": "disc"})
    plain, turned = (built("chen2017", student, lecturer) for lecturer in (teacher, mixed))
    torch.testing.assert_close(turned(*seen(turned, student, mixed)), plain(*seen(plain, student, teacher)))


def test_it_teaches():
    check_teaching("chen2017")
