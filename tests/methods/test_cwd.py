"""CWD: neck and logits, its two variants, its presets, refusals."""

import math

import pytest
import torch

from detdistill.errors import UserError
from detdistill.losses import channel_wise
from detdistill.methods.cwd import CWD, CWDConfig, logit_maps
from detdistill.run.pairing import resolve
from detdistill.types import Need, Targets
from tests.detectors.builders import CLASSES, scene, tiny
from tests.losses.test_features import STUDENT, TEACHER
from tests.methods.maps import info, output
from tests.methods.pairs import built, method_inputs, pair

NO_TARGETS = Targets((), ())


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"variant": "mmrazor"}, 1.4014005102820457),
        ({"variant": "mmrazor", "temperature": 4.0}, 1.962397707371631),
        ({"variant": "original"}, 4.707968934947826),
    ],
)
def test_golden_numbers(options: dict, value: float):
    method = CWD.build(CWDConfig(weight=2.0, **options), info(4), info(4))
    assert method(output(STUDENT), output(TEACHER), NO_TARGETS)["features"].item() == pytest.approx(2 * value, rel=1e-6)


def test_on_the_neck_it_is_the_weighted_sum_over_levels_and_zero_if_the_student_is_the_teacher():
    student, teacher = pair("fcos", "faster_rcnn")
    method = built("cwd", student, teacher, variant="mmrazor")
    assert method.need == Need(pyramids=frozenset({"neck"}))
    student_output, teacher_output, targets = method_inputs(method, student, teacher, scene(objects=False))
    student_levels = student_output.pyramids["neck"].levels
    teacher_levels = teacher_output.pyramids["neck"].levels[1:]  # strides 8, 16 and 32
    levels = zip(student_levels, teacher_levels, strict=True)
    term = method(student_output, teacher_output, targets)["features"]
    torch.testing.assert_close(term, 10 * sum(channel_wise(s, t) for s, t in levels))
    term.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.any() for p in student.backbone_parameters())
    method = built("cwd", teacher, teacher, variant="mmrazor")
    assert method(teacher_output, teacher_output, targets)["features"].abs() < 1e-5


def test_logit_maps_have_one_channel_per_anchor_and_class():
    predictions = tiny("retinanet").eval().observe(scene()[0], need=Need(predictions=True)).stages[-1]
    maps, anchors, classes = logit_maps(predictions), predictions.layout.anchors, len(CLASSES)
    assert [tuple(level.shape) for level in maps] == [
        (2, anchors * classes, 8, 12),
        (2, anchors * classes, 4, 6),
        (2, anchors * classes, 2, 3),
    ]
    row, column, anchor, label = 3, 5, 7, 2  # of the second level
    index = 8 * 12 * anchors + (row * 6 + column) * anchors + anchor
    assert maps[1][1, anchor * classes + label, row, column] == predictions.logits[1, index, label]


def test_on_the_logits_it_is_the_weighted_sum_over_levels():
    student, teacher = pair("gfl")
    method = built("cwd", student, teacher, on="logits")
    assert method.need == Need(predictions=True)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    terms = method(student_output, teacher_output, targets)
    levels = zip(logit_maps(student_output.stages[-1]), logit_maps(teacher_output.stages[-1]), strict=True)
    torch.testing.assert_close(terms["class"], 5 * sum(channel_wise(s, t) for s, t in levels))
    terms["class"].backward()
    assert any(p.grad is not None and p.grad.any() for n, p in student.named_parameters() if n.startswith("head"))
    assert all(p.grad is None for p in teacher.parameters())


def test_each_variant_has_the_weight_that_was_published_with_it():
    teacher = tiny("gfl").info
    rows = [
        {},
        {"variant": "mmrazor"},
        {"on": "logits"},
        {"on": "logits", "variant": "original"},
        {"variant": "mmrazor", "weight": 3.0},
    ]
    names = ("variant", "on", "weight", "levels", "temperature")
    resolved = [resolve({"cwd": options}, teacher, teacher)["cwd"] for options in rows]
    assert [tuple(options[name] for name in names) for options in resolved] == [
        ("original", "neck", 5.0, 4, 1.0),
        ("mmrazor", "neck", 10.0, None, 1.0),
        ("mmrazor", "logits", 5.0, None, 1.0),
        ("original", "logits", 5.0, None, 1.0),
        ("mmrazor", "neck", 3.0, None, 1.0),
    ]


def test_the_original_form_of_a_uniform_teacher_is_the_logarithm_of_the_number_of_cells():
    uniform = torch.zeros(1, 3, 4, 5)
    term = CWD.build(CWDConfig(weight=1.0), info(3), info(3))(output(uniform), output(uniform), NO_TARGETS)["features"]
    assert term.item() == pytest.approx(math.log(20))


def test_unsupported_pairs_are_refused_at_build():
    on_logits = CWDConfig(on="logits")
    fcos, retinanet, two_stage = (tiny(head).info for head in ("fcos", "retinanet", "faster_rcnn"))
    with pytest.raises(UserError, match=r"method cwd: the teacher \(faster_rcnn\) has no dense head"):
        CWD.build(on_logits, fcos, two_stage)
    with pytest.raises(UserError, match="cell by cell"):
        CWD.build(on_logits, fcos, retinanet)
    with pytest.raises(UserError, match="no level in common"):
        CWD.build(CWDConfig(), info(4, (4,)), info(4))
