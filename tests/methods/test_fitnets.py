"""FitNets: a connector that is always there, three reductions, and no head."""

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
from tests.methods.pairs import built, looks, pair


def copying(method: nn.Module) -> nn.Module:
    """The method with connectors that change nothing."""
    with torch.no_grad():
        for connector in method.levels.connectors:
            nn.init.dirac_(connector.weight)
            nn.init.zeros_(connector.bias)
    return method


@pytest.mark.parametrize("reduction", ["mean", "half_sum", "normalized"])
def test_it_is_the_weighted_sum_over_levels_and_zero_for_itself(reduction: str):
    student, teacher = pair("fcos")
    method = copying(built("fitnets", student, teacher, weight=3.0, reduction=reduction))
    mine, theirs, targets = looks(method, student, teacher)
    pairs = zip(mine.pyramids["neck"].levels, theirs.pyramids["neck"].levels, strict=True)
    expected = 3 * sum(hint_distance(s, t, reduction) for s, t in pairs)
    torch.testing.assert_close(method(mine, theirs, targets)["features"], expected)
    assert method(theirs, theirs, targets)["features"].abs() < 1e-9


def test_the_connector_is_always_there_and_signed_unless_asked():
    student, teacher = pair("gfl", "retinanet", channels=48)
    assert [tuple(p.shape) for p in built("fitnets", *pair("fcos")).parameters() if p.ndim == 4] == [(32, 32, 1, 1)] * 3
    method = built("fitnets", student, teacher)
    signed, positive = method, built("fitnets", student, teacher, connector="published")
    mine, theirs, targets = looks(method, student, teacher)
    assert all(level.student.min() < 0 for level in signed.levels(mine, theirs))
    assert all(level.student.min() == 0 for level in positive.levels(mine, theirs))
    assert positive(mine, theirs, targets)["features"].isfinite()
    method(mine, theirs, targets)["features"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert theirs.stages == ()
    assert method.need == Need(pyramids=frozenset({"neck"}))


@pytest.mark.parametrize("reduction", ["mean", "half_sum", "normalized"])
def test_duplicating_the_batch_changes_nothing_and_objects_play_no_part(reduction: str):
    student, teacher = pair("fcos")
    method = built("fitnets", student, teacher, reduction=reduction)
    mine, theirs, targets = looks(method, student, teacher, scene(objects=False))
    doubled = []
    for output in (mine, theirs):
        neck = output.pyramids["neck"]
        doubled.append(
            replace(
                output,
                pyramids={"neck": replace(neck, levels=tuple(torch.cat([level, level]) for level in neck.levels))},
            )
        )
    torch.testing.assert_close(method(*doubled, targets)["features"], method(mine, theirs, targets)["features"])


def test_the_weight_goes_with_the_reduction():
    info = tiny("fcos").info
    assert preset("fitnets", info, info) == {}
    assert preset("fitnets", info, info, given={"reduction": "normalized"}) == {"weight": 10.0}


def test_what_it_cannot_serve_is_refused_at_build():
    info = tiny("fcos").info
    with pytest.raises(UserError, match="method fitnets: no level in common"):
        FitNets.build(FitNetsConfig(), replace(info, strides=(4,)), info)


def test_one_cell_in_the_batch_is_refused_where_there_is_batch_norm():
    one = maps.info(3), maps.info(3)
    student, teacher = (maps.output(torch.randn(1, 3, 1, 1)) for _ in range(2))
    method = FitNets.build(FitNetsConfig(connector="published"), *one)
    with pytest.raises(
        UserError,
        match=r"method fitnets: the level of stride 8 has one cell in the whole batch.*methods\.fitnets\.levels",
    ):
        method(student, teacher, Targets((), ()))
    assert method.eval()(student, teacher, Targets((), ()))["features"].isfinite()
    assert FitNets.build(FitNetsConfig(), *one)(student, teacher, Targets((), ()))["features"].isfinite()
