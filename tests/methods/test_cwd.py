"""CWD: neck and logits, its two codes, its presets, what it refuses."""

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
from tests.methods.pairs import built, looks, pair

NO_TARGETS = Targets((), ())


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"variant": "mmrazor"}, 1.4014005102820457),
        ({"variant": "mmrazor", "temperature": 4.0}, 1.962397707371631),
        ({"variant": "original"}, 4.707968934947826),
    ],
)
def test_golden(options: dict, value: float):
    method = CWD.build(CWDConfig(weight=2.0, **options), info(4), info(4))
    assert method(output(STUDENT), output(TEACHER), NO_TARGETS)["features"].item() == pytest.approx(2 * value, rel=1e-6)


def test_it_is_the_weighted_sum_over_levels_zero_for_itself_and_reads_the_neck_alone():
    student, teacher = pair("fcos", "faster_rcnn")
    method = built("cwd", student, teacher, variant="mmrazor")
    assert method.need == Need(pyramids=frozenset({"neck"}))
    mine, theirs, targets = looks(method, student, teacher, scene(objects=False))
    levels = zip(mine.pyramids["neck"].levels, theirs.pyramids["neck"].levels[1:], strict=True)
    term = method(mine, theirs, targets)["features"]
    torch.testing.assert_close(term, 10 * sum(channel_wise(s, t) for s, t in levels))
    term.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.any() for p in student.backbone_parameters())
    itself = built("cwd", teacher, teacher, variant="mmrazor")
    assert itself(theirs, theirs, targets)["features"].abs() < 1e-5


def test_logits_become_maps_with_a_channel_for_each_anchor_and_class():
    predictions = tiny("retinanet").eval().observe(scene()[0], need=Need(predictions=True)).stages[-1]
    maps, anchors, classes = logit_maps(predictions), predictions.layout.anchors, len(CLASSES)
    assert [tuple(level.shape) for level in maps] == [
        (2, anchors * classes, 8, 12),
        (2, anchors * classes, 4, 6),
        (2, anchors * classes, 2, 3),
    ]
    row, column, anchor, label = 3, 5, 7, 2  # of the second level
    place = 8 * 12 * anchors + (row * 6 + column) * anchors + anchor
    assert maps[1][1, anchor * classes + label, row, column] == predictions.logits[1, place, label]


def test_on_the_logits_it_compares_shared_classes_in_every_channel():
    student, teacher = pair("gfl")
    method = built("cwd", student, teacher, on="logits")
    assert method.need == Need(predictions=True)
    mine, theirs, targets = looks(method, student, teacher)
    terms = method(mine, theirs, targets)
    levels = zip(logit_maps(mine.stages[-1]), logit_maps(theirs.stages[-1]), strict=True)
    torch.testing.assert_close(terms["class"], 5 * sum(channel_wise(s, t) for s, t in levels))
    terms["class"].backward()
    assert any(p.grad is not None and p.grad.any() for n, p in student.named_parameters() if n.startswith("head"))
    assert all(p.grad is None for p in teacher.parameters())


def test_each_weight_comes_with_what_it_was_published_with():
    teacher = tiny("gfl").info
    rows = [
        {},
        {"variant": "mmrazor"},
        {"on": "logits"},
        {"on": "logits", "variant": "original"},
        {"variant": "mmrazor", "weight": 3.0},
    ]
    resolved = [resolve({"cwd": given}, teacher, teacher)["cwd"] for given in rows]
    assert [(o["variant"], o["on"], o["weight"], o["levels"], o["temperature"]) for o in resolved] == [
        ("original", "neck", 5.0, 4, 1.0),
        ("mmrazor", "neck", 10.0, None, 1.0),
        ("mmrazor", "logits", 5.0, None, 1.0),
        ("original", "logits", 5.0, None, 1.0),
        ("mmrazor", "neck", 3.0, None, 1.0),
    ]


def test_a_uniform_teacher_costs_the_logarithm_of_its_cells_in_the_original_form():
    flat = torch.zeros(1, 3, 4, 5)
    term = CWD.build(CWDConfig(weight=1.0), info(3), info(3))(output(flat), output(flat), NO_TARGETS)["features"]
    assert term.item() == pytest.approx(math.log(20))


def test_what_it_cannot_serve_is_refused_at_build():
    on_logits = CWDConfig(on="logits")
    fcos, retinanet, two_stage = (tiny(head).info for head in ("fcos", "retinanet", "faster_rcnn"))
    with pytest.raises(UserError, match=r"method cwd: the teacher \(faster_rcnn\) has no dense head"):
        CWD.build(on_logits, fcos, two_stage)
    with pytest.raises(UserError, match="cell by cell"):
        CWD.build(on_logits, fcos, retinanet)
    with pytest.raises(UserError, match="no level in common"):
        CWD.build(CWDConfig(), info(4, (4,)), info(4))
