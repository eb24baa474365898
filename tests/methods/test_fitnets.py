"""FitNets: a connector on every level, three reductions, no head."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from detdistill.errors import UserError
from detdistill.losses import hint_distance
from detdistill.methods.fitnets import FitNets, FitNetsConfig
from detdistill.methods.presets import preset
from detdistill.types import Need, Targets
from tests.detectors.builders import scene, tiny
from tests.methods import maps
from tests.methods.pairs import built, method_inputs, pair


def with_identity_connectors(method: nn.Module) -> nn.Module:
    """Returns the method with connectors that are the identity."""
    with torch.no_grad():
        for connector in method.levels.connectors:
            nn.init.dirac_(connector.weight)
            nn.init.zeros_(connector.bias)
    return method


@pytest.mark.parametrize("reduction", ["mean", "half_sum", "normalized"])
def test_the_term_is_the_weighted_sum_over_levels_and_zero_for_equal_maps(reduction: str):
    student, teacher = pair("fcos")
    method = with_identity_connectors(built("fitnets", student, teacher, weight=3.0, reduction=reduction))
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    pairs = zip(student_output.pyramids["neck"].levels, teacher_output.pyramids["neck"].levels, strict=True)
    expected = 3 * sum(hint_distance(s, t, reduction) for s, t in pairs)
    torch.testing.assert_close(method(student_output, teacher_output, targets)["features"], expected)
    assert method(teacher_output, teacher_output, targets)["features"].abs() < 1e-9


def test_every_level_has_a_connector_whose_output_is_signed_unless_it_is_the_published_one():
    student, teacher = pair("gfl", "retinanet", channels=48)
    weights = [p for p in built("fitnets", *pair("fcos")).parameters() if p.ndim == 4]
    assert [tuple(p.shape) for p in weights] == [(32, 32, 1, 1)] * 3
    method = built("fitnets", student, teacher)
    published = built("fitnets", student, teacher, connector="published")
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    assert all(level.student.min() < 0 for level in method.levels(student_output, teacher_output))
    assert all(level.student.min() == 0 for level in published.levels(student_output, teacher_output))
    assert published(student_output, teacher_output, targets)["features"].isfinite()
    method(student_output, teacher_output, targets)["features"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert teacher_output.stages == ()
    assert method.need == Need(pyramids=frozenset({"neck"}))


@pytest.mark.parametrize("reduction", ["mean", "half_sum", "normalized"])
def test_duplicating_the_batch_changes_nothing_and_no_objects_are_needed(reduction: str):
    student, teacher = pair("fcos")
    method = built("fitnets", student, teacher, reduction=reduction)
    student_output, teacher_output, targets = method_inputs(method, student, teacher, scene(objects=False))
    doubled = []
    for output in (student_output, teacher_output):
        neck = output.pyramids["neck"]
        levels = tuple(torch.cat([level, level]) for level in neck.levels)
        doubled.append(replace(output, pyramids={"neck": replace(neck, levels=levels)}))
    torch.testing.assert_close(
        method(*doubled, targets)["features"], method(student_output, teacher_output, targets)["features"]
    )


def test_the_preset_weight_depends_on_the_reduction():
    info = tiny("fcos").info
    assert preset("fitnets", info, info) == {}
    assert preset("fitnets", info, info, given={"reduction": "normalized"}) == {"weight": 10.0}


def test_build_refuses_unsuitable_detectors():
    info = tiny("fcos").info
    with pytest.raises(UserError, match="method fitnets: no level in common"):
        FitNets.build(FitNetsConfig(), replace(info, strides=(4,)), info)


def test_batch_norm_refuses_a_level_of_one_cell_in_the_batch():
    student_output = maps.output(torch.randn(1, 3, 1, 1))
    teacher_output = maps.output(torch.randn(1, 3, 1, 1))
    method = FitNets.build(FitNetsConfig(connector="published"), maps.info(3), maps.info(3))
    with pytest.raises(
        UserError,
        match=r"method fitnets: the level of stride 8 has one cell in the whole batch.*methods\.fitnets\.levels",
    ):
        method(student_output, teacher_output, Targets((), ()))
    assert method.eval()(student_output, teacher_output, Targets((), ()))["features"].isfinite()
    plain = FitNets.build(FitNetsConfig(), maps.info(3), maps.info(3))
    assert plain(student_output, teacher_output, Targets((), ()))["features"].isfinite()
