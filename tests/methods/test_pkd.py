"""PKD: pairs by stride, no head, the connector, the options."""

from dataclasses import replace

import pytest
import torch

from detdistill.errors import UserError
from detdistill.losses import pearson_distance
from detdistill.methods.pkd import PKD, PKDConfig
from detdistill.types import Need
from tests.detectors.builders import tiny
from tests.methods.pairs import built, method_inputs, pair


def test_the_term_is_the_weighted_sum_over_levels_and_zero_for_equal_maps():
    student, teacher = pair("fcos")
    method = built("pkd", student, teacher, weight=3.0, least_positions=2)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    levels = zip(student_output.pyramids["neck"].levels, teacher_output.pyramids["neck"].levels, strict=True)
    expected = 3 * sum(pearson_distance(s, t) for s, t in levels)
    torch.testing.assert_close(method(student_output, teacher_output, targets)["features"], expected)
    assert method(teacher_output, teacher_output, targets)["features"].abs() < 1e-9


def test_the_teacher_needs_no_head_and_gets_no_gradient():
    student, teacher = pair("gfl", "retinanet")
    method = built("pkd", student, teacher)
    assert method.need == Need(pyramids=frozenset({"neck"}))
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    assert teacher_output.stages == ()
    method(student_output, teacher_output, targets)["features"].backward()
    head = [p.grad for n, p in student.named_parameters() if n.startswith("head")]
    backbone = [p.grad for p in student.backbone_parameters()]
    assert all(gradient is None for gradient in head)
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in backbone)
    assert all(p.grad is None for p in teacher.parameters())


def test_levels_are_paired_by_stride_or_by_index():
    student, teacher = tiny("fcos"), tiny("faster_rcnn")  # strides 8 16 32 and 4 8 16 32
    by_stride = built("pkd", student, teacher)
    assert by_stride.levels.strides == ((8, 8), (16, 16), (32, 32))
    by_index = built("pkd", student, teacher, pairing="index", least_positions=2)
    assert by_index.levels.strides == ((8, 4), (16, 8), (32, 16))
    term = by_index(*method_inputs(by_index, student, teacher.eval()))["features"]
    assert term.isfinite()
    assert built("pkd", student, teacher, levels=2).levels.strides == ((8, 8), (16, 16))


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_the_maps_of_one_side_are_resized(side: str):
    student, teacher = pair("fcos", "faster_rcnn")
    method = built("pkd", student, teacher, pairing="index", resize=side, least_positions=2)
    student_output, teacher_output, _ = method_inputs(method, student, teacher)
    first = method.levels(student_output, teacher_output)[0]
    unchanged = (teacher_output if side == "student" else student_output).pyramids["neck"]
    assert first.student.shape == first.teacher.shape == unchanged.levels[0].shape
    assert first.stride == unchanged.strides[0]


def test_a_connector_is_learned_only_if_channel_counts_differ():
    student, teacher = pair("fcos", channels=64)
    assert list(built("pkd", *pair("fcos")).parameters()) == []
    method = built("pkd", student, teacher)
    assert [tuple(p.shape) for p in method.parameters() if p.ndim == 4] == [(32, 64, 1, 1)] * 3
    method(*method_inputs(method, student, teacher))["features"].backward()
    weights = [p for p in method.parameters() if p.ndim == 4]
    has_gradient = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in weights]
    assert has_gradient == [True, True, False]  # the coarsest level has fewer than 16 cells and is left out


def test_small_levels_are_left_out_and_it_is_an_error_if_no_level_is_left():
    student, teacher = pair("fcos")
    all_levels = built("pkd", student, teacher, least_positions=2)
    large_levels = built("pkd", student, teacher, least_positions=100)
    first_level = built("pkd", student, teacher, levels=1)
    methods = (all_levels, large_levels, first_level)
    terms = [method(*method_inputs(method, student, teacher))["features"].item() for method in methods]
    assert terms[0] > terms[1] == terms[2]
    no_level = built("pkd", student, teacher, least_positions=10**6)
    with pytest.raises(UserError, match=r"too small to correlate \(192, 48, 12 cells"):
        no_level(*method_inputs(no_level, student, teacher))


def test_duplicating_the_batch_changes_only_the_degrees_of_freedom():
    student, teacher = pair("fcos")
    method = built("pkd", student, teacher, levels=1)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    once = method(student_output, teacher_output, targets)["features"]
    doubled = []
    for output in (student_output, teacher_output):
        neck = output.pyramids["neck"]
        levels = tuple(torch.cat([level, level]) for level in neck.levels)
        doubled.append(replace(output, pyramids={"neck": replace(neck, levels=levels)}))
    m = student_output.pyramids["neck"].levels[0][:, 0].numel()
    twice = method(doubled[0], doubled[1], targets)["features"]
    torch.testing.assert_close(twice / once, torch.tensor(((2 * m - 1) / (2 * m)) / ((m - 1) / m)), rtol=1e-4, atol=0)


def test_distance_mse():
    student, teacher = pair("fcos")
    options = {"weight": 3.0, "levels": 2}
    plain = built("pkd", student, teacher, distance="mse", **options)
    correlated = built("pkd", student, teacher, distance="pearson", **options)
    student_output, teacher_output, targets = method_inputs(plain, student, teacher)
    levels = list(zip(student_output.pyramids["neck"].levels, teacher_output.pyramids["neck"].levels, strict=True))[:2]
    expected = 3 * sum((s - t).square().mean() / 2 for s, t in levels)
    torch.testing.assert_close(plain(student_output, teacher_output, targets)["features"], expected)
    neck = student_output.pyramids["neck"]
    scaled = replace(
        student_output, pyramids={"neck": replace(neck, levels=tuple(2 * level + 1 for level in neck.levels))}
    )
    before = correlated(student_output, teacher_output, targets)["features"]
    torch.testing.assert_close(correlated(scaled, teacher_output, targets)["features"], before, rtol=1e-4, atol=0)
    before = plain(student_output, teacher_output, targets)["features"]
    assert plain(scaled, teacher_output, targets)["features"] > 1.5 * before


@pytest.mark.parametrize(("student_head", "teacher_head"), [("gfl", "gfl"), ("fcos", "retinanet")])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_tower_features_at_every_depth(student_head: str, teacher_head: str, depth: int):
    student, teacher = pair(student_head, teacher_head)
    method = built("pkd", student, teacher, pyramid="towers", depth=depth, weight=2.0)
    assert method.need == method.student_need == Need(towers=frozenset({depth}))
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    student_state, teacher_state = student_output.towers.states[depth], teacher_output.towers.states[depth]
    pairs = [
        *zip(student_state.classification, teacher_state.classification, strict=True),
        *zip(student_state.regression, teacher_state.regression, strict=True),
    ]
    pairs = [(s.relu(), t.relu()) if depth else (s, t) for s, t in pairs if s[:, 0].numel() >= 16]
    assert len(pairs) == 4
    term = method(student_output, teacher_output, targets)["features"]
    torch.testing.assert_close(term, 2 * sum(pearson_distance(s, t) for s, t in pairs))
    term.backward()
    for blocks in (student.towers.classification, student.towers.regression):
        has_gradient = [all(p.grad is not None for layer in block for p in layer.parameters()) for block in blocks]
        assert has_gradient == [index < depth for index in range(2)]
    assert all(p.grad is None for p in teacher.parameters())


def test_towers_may_differ_in_depth_and_channels():
    student, teacher = pair("fcos", channels=64, tower_depth=1)
    method = built("pkd", student, teacher, pyramid="towers")
    assert (method.levels.depths, method.student_need) == ((0, 1), Need(towers=frozenset({0})))
    assert [tuple(p.shape) for p in method.parameters() if p.ndim == 4] == [(32, 64, 1, 1)] * 6
    assert method(*method_inputs(method, student, teacher))["features"].isfinite()
    with pytest.raises(UserError, match="depth 2 is beyond the student's towers, which have 1"):
        PKD.build(PKDConfig(pyramid="towers", depth=2), student.info, teacher.info)
    with pytest.raises(UserError, match=r"method pkd: the teacher \(faster_rcnn\) has no towers"):
        PKD.build(PKDConfig(pyramid="towers"), student.info, tiny("faster_rcnn").info)


def test_the_teacher_may_have_the_weights_of_the_student():
    teacher = tiny("gfl", seed=1).eval().requires_grad_(False)
    student = tiny("gfl", seed=1).eval()  # a separate copy of the same weights
    method = built("pkd", student, teacher)
    assert method(*method_inputs(method, student, teacher))["features"] < 1e-9
    student_output, teacher_output, targets = method_inputs(method, student.train(), teacher)
    term = method(student_output, teacher_output, targets)["features"]
    term.backward()
    assert term > 0  # the student's batch norms use batch statistics, the teacher's running averages
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())


def test_build_refuses_unsuitable_detectors():
    student, teacher = tiny("fcos"), tiny("fcos")
    with pytest.raises(UserError, match="no level in common"):
        PKD.build(PKDConfig(), replace(student.info, strides=(4,)), teacher.info)
    with pytest.raises(UserError, match="no pyramid 'memory' on the student"):
        PKD.build(PKDConfig(pyramid="memory"), student.info, teacher.info)
