"""PKD: pairs by stride, no head, its connector, its options."""

from dataclasses import replace

import pytest
import torch

from detdistill.errors import UserError
from detdistill.losses import pearson_distance
from detdistill.methods.pkd import PKD, PKDConfig
from detdistill.types import Need
from tests.detectors.builders import tiny
from tests.methods.pairs import built, looks, pair


def test_it_is_the_weighted_sum_over_levels_and_zero_for_itself():
    student, teacher = pair("fcos")
    method = built("pkd", student, teacher, weight=3.0, least_positions=2)
    mine, theirs, targets = looks(method, student, teacher)
    levels = zip(mine.pyramids["neck"].levels, theirs.pyramids["neck"].levels, strict=True)
    expected = 3 * sum(pearson_distance(s, t) for s, t in levels)
    torch.testing.assert_close(method(mine, theirs, targets)["features"], expected)
    assert method(theirs, theirs, targets)["features"].abs() < 1e-9


def test_it_needs_no_head_of_the_teacher_and_leaves_it_without_gradient():
    student, teacher = pair("gfl", "retinanet")
    method = built("pkd", student, teacher)
    assert method.need == Need(pyramids=frozenset({"neck"}))
    mine, theirs, targets = looks(method, student, teacher)
    assert theirs.stages == ()
    method(mine, theirs, targets)["features"].backward()
    head = [p.grad for n, p in student.named_parameters() if n.startswith("head")]
    body = [p.grad for p in student.backbone_parameters()]
    assert all(gradient is None for gradient in head)
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in body)
    assert all(p.grad is None for p in teacher.parameters())


def test_levels_are_paired_by_stride_unless_asked_by_index():
    student, teacher = tiny("fcos"), tiny("faster_rcnn")  # strides 8 16 32 and 4 8 16 32
    by_stride = built("pkd", student, teacher)
    assert by_stride.levels.strides == ((8, 8), (16, 16), (32, 32))
    by_index = built("pkd", student, teacher, pairing="index", least_positions=2)
    assert by_index.levels.strides == ((8, 4), (16, 8), (32, 16))
    term = by_index(*looks(by_index, student, teacher.eval()))["features"]
    assert term.isfinite()
    assert built("pkd", student, teacher, levels=2).levels.strides == ((8, 8), (16, 16))


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_resizing_brings_one_side_to_the_other(side: str):
    student, teacher = pair("fcos", "faster_rcnn")
    method = built("pkd", student, teacher, pairing="index", resize=side, least_positions=2)
    mine, theirs, _ = looks(method, student, teacher)
    first = method.levels(mine, theirs)[0]
    kept = (theirs if side == "student" else mine).pyramids["neck"]
    assert first.student.shape == first.teacher.shape == kept.levels[0].shape
    assert first.stride == kept.strides[0]


def test_a_connector_is_learned_only_where_widths_differ():
    student, teacher = pair("fcos", channels=64)
    assert list(built("pkd", *pair("fcos")).parameters()) == []
    method = built("pkd", student, teacher)
    assert [tuple(p.shape) for p in method.parameters() if p.ndim == 4] == [(32, 64, 1, 1)] * 3
    method(*looks(method, student, teacher))["features"].backward()
    # The smallest level has fewer than 16 cells in this batch and is left out.
    assert [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in method.parameters() if p.ndim == 4] == [
        True,
        True,
        False,
    ]


def test_tiny_levels_are_left_out_and_nothing_left_is_an_error():
    student, teacher = pair("fcos")
    every, finest = (built("pkd", student, teacher, least_positions=count) for count in (2, 100))
    only = built("pkd", student, teacher, levels=1)
    terms = [method(*looks(method, student, teacher))["features"].item() for method in (every, finest, only)]
    assert terms[0] > terms[1] == terms[2]
    none = built("pkd", student, teacher, least_positions=10**6)
    with pytest.raises(UserError, match=r"too small to correlate \(192, 48, 12 cells"):
        none(*looks(none, student, teacher))


def test_duplicating_the_batch_changes_it_by_the_degrees_of_freedom_only():
    student, teacher = pair("fcos")
    method = built("pkd", student, teacher, levels=1)
    mine, theirs, targets = looks(method, student, teacher)
    once = method(mine, theirs, targets)["features"]
    doubled = []
    for output in (mine, theirs):
        neck = output.pyramids["neck"]
        levels = tuple(torch.cat([level, level]) for level in neck.levels)
        doubled.append(replace(output, pyramids={"neck": replace(neck, levels=levels)}))
    m = mine.pyramids["neck"].levels[0][:, 0].numel()
    twice = method(doubled[0], doubled[1], targets)["features"]
    torch.testing.assert_close(twice / once, torch.tensor(((2 * m - 1) / (2 * m)) / ((m - 1) / m)), rtol=1e-4, atol=0)


def test_plain_squares_in_place_of_correlation():
    student, teacher = pair("fcos")
    options = {"weight": 3.0, "levels": 2}
    plain, correlated = (
        built("pkd", student, teacher, distance=distance, **options) for distance in ("mse", "pearson")
    )
    mine, theirs, targets = looks(plain, student, teacher)
    levels = list(zip(mine.pyramids["neck"].levels, theirs.pyramids["neck"].levels, strict=True))[:2]
    expected = 3 * sum((s - t).square().mean() / 2 for s, t in levels)
    torch.testing.assert_close(plain(mine, theirs, targets)["features"], expected)
    neck = mine.pyramids["neck"]
    scaled = replace(mine, pyramids={"neck": replace(neck, levels=tuple(2 * level + 1 for level in neck.levels))})
    torch.testing.assert_close(
        *(correlated(output, theirs, targets)["features"] for output in (mine, scaled)), rtol=1e-4, atol=0
    )
    assert plain(scaled, theirs, targets)["features"] > 1.5 * plain(mine, theirs, targets)["features"]


@pytest.mark.parametrize(("head", "teacher"), [("gfl", "gfl"), ("fcos", "retinanet")])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_tower_features_at_every_depth(head: str, teacher: str, depth: int):
    student, lecturer = pair(head, teacher)
    method = built("pkd", student, lecturer, pyramid="towers", depth=depth, weight=2.0)
    assert method.need == method.student_need == Need(towers=frozenset({depth}))
    mine, theirs, targets = looks(method, student, lecturer)
    states = [output.towers.states[depth] for output in (mine, theirs)]
    pairs = [
        (s, t)
        for tower in ("classification", "regression")
        for s, t in zip(*(getattr(state, tower) for state in states), strict=True)
    ]
    shown = [(s.relu(), t.relu()) if depth else (s, t) for s, t in pairs if s[:, 0].numel() >= 16]
    assert len(shown) == 4
    term = method(mine, theirs, targets)["features"]
    torch.testing.assert_close(term, 2 * sum(pearson_distance(s, t) for s, t in shown))
    term.backward()
    for blocks in (student.towers.classification, student.towers.regression):
        grads = [all(p.grad is not None for layer in block for p in layer.parameters()) for block in blocks]
        assert grads == [place < depth for place in range(2)]
    assert all(p.grad is None for p in lecturer.parameters())


def test_towers_of_other_depths_and_widths():
    student, teacher = pair("fcos", channels=64, tower_depth=1)
    method = built("pkd", student, teacher, pyramid="towers")
    assert (method.levels.depths, method.student_need) == ((0, 1), Need(towers=frozenset({0})))
    assert [tuple(p.shape) for p in method.parameters() if p.ndim == 4] == [(32, 64, 1, 1)] * 6
    assert method(*looks(method, student, teacher))["features"].isfinite()
    with pytest.raises(UserError, match="depth 2 is beyond the student's towers, which have 1"):
        PKD.build(PKDConfig(pyramid="towers", depth=2), student.info, teacher.info)
    with pytest.raises(UserError, match=r"method pkd: the teacher \(faster_rcnn\) has no towers"):
        PKD.build(PKDConfig(pyramid="towers"), student.info, tiny("faster_rcnn").info)


def test_a_detector_may_teach_a_copy_of_itself():
    teacher = tiny("gfl", seed=1).eval().requires_grad_(False)
    student = tiny("gfl", seed=1).eval()  # the same weights at first, of its own
    method = built("pkd", student, teacher)
    assert method(*looks(method, student, teacher))["features"] < 1e-9
    mine, theirs, targets = looks(method, student.train(), teacher)
    term = method(mine, theirs, targets)["features"]
    term.backward()
    assert term > 0  # a training student's norms see the batch, the teacher's their averages
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())


def test_what_it_cannot_serve_is_refused_at_build():
    student, teacher = tiny("fcos"), tiny("fcos")
    with pytest.raises(UserError, match="no level in common"):
        PKD.build(PKDConfig(), replace(student.info, strides=(4,)), teacher.info)
    with pytest.raises(UserError, match="no pyramid 'memory' on the student"):
        PKD.build(PKDConfig(pyramid="memory"), student.info, teacher.info)
