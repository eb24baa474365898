"""MGD: golden numbers, the mask and its generator, learned parts, presets."""

import pytest
import torch
from torch import nn

from detdistill.errors import UserError
from detdistill.methods.mgd import MGD, MGDConfig, kept_cells
from detdistill.run.pairing import resolve
from detdistill.types import Need, Targets, TrainState
from tests.detectors.builders import scene, tiny
from tests.losses.test_attention import generator
from tests.losses.test_features import STUDENT, TEACHER
from tests.methods.maps import info, output
from tests.methods.pairs import built, method_inputs, pair

NO_TARGETS = Targets((), ())


def golden(**options: object) -> MGD:
    """Returns MGD on maps of four channels, with the generation block of the golden numbers."""
    method = MGD.build(MGDConfig(weight=1.0, **options), info(4), info(4))
    method.generators = nn.ModuleList([generator()])
    return method


def seeded(seed: int) -> TrainState:
    """Returns a state with a generator of this seed."""
    return TrainState(generator=torch.Generator().manual_seed(seed))


def test_golden_without_a_mask():
    term = golden(drop=0.0)(output(STUDENT), output(TEACHER), NO_TARGETS)["features"]
    assert term.item() == pytest.approx(1599.648154085441, rel=1e-6)


def test_the_mask_drops_a_fraction_of_the_cells_and_is_drawn_with_the_generator_of_the_state():
    features = torch.ones(4, 3, 50, 60)
    mask = kept_cells(features, 0.65, torch.Generator().manual_seed(0))
    assert mask.shape == (4, 1, 50, 60)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.mean().item() == pytest.approx(0.35, abs=0.02)  # 12000 cells: a tolerance of five standard deviations
    assert kept_cells(features, 0.0, None).all()
    assert not kept_cells(features, 1.0, None).any()
    method = golden()
    states = (seeded(1), seeded(1), seeded(2))
    terms = [method(output(STUDENT), output(TEACHER), NO_TARGETS, state)["features"] for state in states]
    assert terms[0] == terms[1] != terms[2]


def test_each_level_and_step_has_a_new_mask():
    method = MGD.build(MGDConfig(weight=1.0), info(4, (8, 16)), info(4, (8, 16))).double()
    kept = []
    for block in method.generators:
        block.register_forward_hook(lambda block, inputs, result: kept.append(inputs[0] != 0))
    state = seeded(0)
    student_output = output(STUDENT, STUDENT, strides=(8, 16))
    teacher_output = output(TEACHER, TEACHER, strides=(8, 16))
    for _ in range(2):
        method(student_output, teacher_output, NO_TARGETS, state)
    masks = {tuple(mask[:, 0].flatten().tolist()) for mask in kept}
    assert len(masks) == len(kept) == 4


def test_without_a_mask_duplicating_the_batch_changes_nothing():
    method = golden(drop=0.0)
    once = method(output(STUDENT), output(TEACHER), NO_TARGETS)["features"]
    twice = method(output(STUDENT.repeat(2, 1, 1, 1)), output(TEACHER.repeat(2, 1, 1, 1)), NO_TARGETS)["features"]
    torch.testing.assert_close(twice, once)


def test_it_reads_the_neck_and_learns_a_block_and_a_connector_per_level():
    student, teacher = pair("gfl", "retinanet", channels=48)
    method = built("mgd", student, teacher, weight=1.0)
    assert method.need == Need(pyramids=frozenset({"neck"}))
    assert sum(p.numel() for p in method.parameters()) == 3 * (2 * (32 * 32 * 9 + 32) + 48 * 32 + 32)
    terms = method(*method_inputs(method, student, teacher, scene(objects=False)))
    assert set(terms) == {"features"}
    terms["features"].backward()
    assert all(p.grad is not None and p.grad.any() for p in method.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.any() for p in student.backbone_parameters())


def test_presets_depend_on_the_teachers_head():
    dense, two_stage = tiny("fcos").info, tiny("faster_rcnn").info
    for teacher, expected in ((dense, (2e-5, 0.65, None)), (two_stage, (5e-7, 0.45, 4))):
        options = resolve({"mgd": {}}, dense, teacher)["mgd"]
        assert (options["weight"], options["drop"], options["levels"]) == expected


def test_build_refuses_detectors_without_a_common_level():
    with pytest.raises(UserError, match="method mgd: no level in common"):
        MGD.build(MGDConfig(), info(4, (4,)), info(4))
