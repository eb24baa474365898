"""FGD: the golden total, context blocks, masks with padding, options and presets."""

import pytest
import torch
import torch.nn.functional as F

from detdistill.errors import UserError
from detdistill.geometry import focal_masks
from detdistill.losses import attention_distance, focal_distance, squared_distance
from detdistill.methods.fgd import FGD, ContextBlock, FGDConfig
from detdistill.methods.presets import preset
from detdistill.run.pairing import resolve
from detdistill.types import Need, Targets
from tests.detectors.builders import scene, tiny
from tests.losses.test_attention import BOXES
from tests.losses.test_features import STUDENT, TEACHER
from tests.methods.maps import info, output
from tests.methods.pairs import built, method_inputs, pair

TARGETS = Targets(tuple(BOXES), (torch.zeros(2, dtype=torch.long), torch.zeros(1, dtype=torch.long)))
TERMS = ("foreground", "background", "attention", "relation")


def double_method(**options: object) -> FGD:
    """Returns FGD on maps of four channels at stride 8, in double precision."""
    torch.manual_seed(0)
    return FGD.build(FGDConfig(**options), info(4), info(4)).double()


@pytest.mark.parametrize("masks", ["stride", "published"])
@pytest.mark.parametrize(("temperature", "total"), [(0.5, 0.07346369660435202), (0.8, 0.06037395030517866)])
def test_golden_total_at_initialization(temperature: float, total: float, masks: str):
    terms = double_method(temperature=temperature, masks=masks)(output(STUDENT), output(TEACHER), TARGETS)
    assert tuple(terms) == TERMS
    assert sum(terms.values()).item() == pytest.approx(total, rel=1e-6)
    assert terms["relation"].item() == pytest.approx(5e-6 * 781.326001709885, rel=1e-6)


def test_a_context_block_by_hand():
    # Two cells, two channels. The weight of cell 0 is 3/4: the context is (3/4 * 0 + 1/4 * 4, 3/4 * 8 + 1/4 * 0) =
    # (1, 6). Half the channels are one channel. Its layer norm returns the bias, here 2. The vector added to every cell
    # is (2 * 1, 2 * 3) + (0, 1) = (2, 7).
    block = ContextBlock(2)
    features = torch.tensor([[[[0.0, 4]], [[8.0, 0]]]])
    with torch.no_grad():
        block.attend.weight.copy_(torch.tensor([0.0, torch.tensor(3.0).log() / 8]).view(1, 2, 1, 1))
        block.transform[1].bias.fill_(2)
        block.transform[3].weight.copy_(torch.tensor([1.0, 3]).view(2, 1, 1, 1))
        block.transform[3].bias.copy_(torch.tensor([0.0, 1]))
    contexts = []
    block.transform[0].register_forward_hook(lambda layer, inputs, result: contexts.append(inputs[0].flatten()))
    torch.testing.assert_close(block(features), features + torch.tensor([2.0, 7]).view(1, 2, 1, 1))
    torch.testing.assert_close(contexts[0], torch.tensor([1.0, 6]))


def test_a_new_block_adds_zero_and_the_teachers_block_is_learned_unless_it_is_left_out():
    features = TEACHER[:, :1].float().expand(-1, 6, -1, -1)
    assert torch.equal(ContextBlock(6)(features), features)
    method = double_method()
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    method(output(student), output(teacher), TARGETS)["relation"].backward()
    assert teacher.grad is None
    assert student.grad.any()
    for blocks in (method.student_blocks, method.teacher_blocks):
        assert blocks[0].transform[3].weight.grad.any()
    plain = double_method(teacher_context=False)
    assert list(plain.teacher_blocks.parameters()) == []
    with torch.no_grad():  # training the student's block must not change the target
        plain.student_blocks[0].transform[3].bias.fill_(1.0)
    expected = 5e-6 * squared_distance(STUDENT + 1, TEACHER)
    torch.testing.assert_close(plain(output(STUDENT), output(TEACHER), TARGETS)["relation"], expected)


def test_terms_are_zero_for_equal_maps_and_duplicating_the_batch_changes_nothing():
    method = double_method()
    assert all(term == 0 for term in method(output(TEACHER), output(TEACHER), TARGETS).values())
    once = method(output(STUDENT), output(TEACHER), TARGETS)
    targets = Targets(TARGETS.boxes * 2, TARGETS.labels * 2)
    twice = method(output(STUDENT.repeat(2, 1, 1, 1)), output(TEACHER.repeat(2, 1, 1, 1)), targets)
    torch.testing.assert_close(twice, once)


def test_padding_changes_only_the_published_regions():
    # The padding is 0 on both sides. It changes the terms through the attention (HW times a softmax), not the regions.
    sizes = torch.tensor([[48, 64], [48, 64]])
    padded = [F.pad(side, (0, 5, 0, 3)) for side in (STUDENT, TEACHER)]
    regions = torch.stack(focal_masks(TARGETS.boxes, (6, 8), 8, sizes))
    padded_regions = F.pad(regions, (0, 5, 0, 3))
    for masks, is_equal in (("stride", True), ("published", False)):
        method = double_method(masks=masks, weight_foreground=1.0, weight_background=1.0)
        terms = method(*(output(side, sizes=sizes) for side in padded), TARGETS)
        expected = focal_distance(*padded, padded_regions, 0.5)
        assert torch.allclose(torch.stack([terms["foreground"], terms["background"]]), expected) is is_equal


def test_terms_are_sums_over_levels_of_the_neck():
    student, teacher = pair("fcos", "faster_rcnn")
    weights = {f"weight_{term}": float(index + 1) for index, term in enumerate(TERMS)}
    method = built("fgd", student, teacher, **weights)
    assert method.need == Need(pyramids=frozenset({"neck"}))
    assert method.levels.strides == ((8, 8), (16, 16), (32, 32))
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    terms = method(student_output, teacher_output, targets)
    student_neck = student_output.pyramids["neck"]
    teacher_levels = teacher_output.pyramids["neck"].levels[1:]
    expected = torch.zeros(4)
    for stride, s, t in zip((8, 16, 32), student_neck.levels, teacher_levels, strict=True):
        regions = torch.stack(focal_masks(targets.boxes, s.shape[-2:], stride, student_neck.sizes))
        foreground, background = focal_distance(s, t, regions, 0.5)
        expected += torch.stack([foreground, background, attention_distance(s, t, 0.5), squared_distance(s, t)])
    torch.testing.assert_close(torch.stack([terms[name] for name in TERMS]), expected * torch.tensor([1.0, 2, 3, 4]))
    sum(terms.values()).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.any() for p in student.backbone_parameters())


def test_without_objects_terms_are_finite_and_all_cells_are_background():
    student, teacher = pair("fcos")
    method = built("fgd", student, teacher)
    terms = method(*method_inputs(method, student, teacher, scene(objects=False)))
    assert terms["foreground"] == 0
    assert terms["background"] > 0
    assert all(term.isfinite() for term in terms.values())


def test_a_term_of_weight_zero_is_left_out_with_its_parameters():
    method = double_method(weight_background=0, weight_relation=0)
    assert list(method.parameters()) == []
    assert set(method(output(STUDENT), output(TEACHER), TARGETS)) == {"foreground", "attention"}


# Weights a, b, g, l and the temperature of the released configurations; g and the temperature of the paper's table.
PUBLISHED = {
    "faster_rcnn": ((5e-5, 2.5e-5, 5e-5, 5e-7, 0.5), (5e-5, 0.5)),
    "retinanet": ((1e-3, 5e-4, 5e-4, 5e-6, 0.5), (1e-3, 0.5)),
    "gfl": ((1e-3, 5e-4, 5e-4, 5e-6, 0.5), (1e-3, 0.5)),
    "fcos": ((1.6e-3, 8e-4, 8e-4, 8e-6, 0.8), (8e-3, 0.5)),
}


@pytest.mark.parametrize("head", PUBLISHED)
def test_presets_are_as_published_in_code_and_paper(head: str):
    teacher = tiny(head).info
    code = resolve({"fgd": {}}, teacher, teacher)["fgd"]
    paper = resolve({"fgd": {"variant": "paper"}}, teacher, teacher)["fgd"]
    weights = [f"weight_{term}" for term in TERMS]
    assert tuple(code[name] for name in [*weights, "temperature"]) == PUBLISHED[head][0]
    assert (paper["weight_attention"], paper["temperature"]) == PUBLISHED[head][1]
    assert {name for name in code if code[name] != paper[name]} <= {"variant", "weight_attention", "temperature"}
    assert code["levels"] == (4 if head == "faster_rcnn" else None)
    assert preset("fgd", teacher, teacher, given={"variant": "code"}) == preset("fgd", teacher, teacher)


def test_build_refuses_unsuitable_detectors_and_options():
    with pytest.raises(UserError, match="method fgd: no level in common"):
        FGD.build(FGDConfig(), info(4, (4,)), info(4))
    weights = {f"weight_{term}": 0.0 for term in TERMS}
    with pytest.raises(UserError, match="method fgd: all its weights are 0"):
        FGD.build(FGDConfig(**weights), info(4), info(4))


def test_channel_counts_may_differ():
    torch.manual_seed(0)
    method = FGD.build(FGDConfig(), info(2), info(4)).double()
    terms = method(output(STUDENT[:, :2]), output(TEACHER), TARGETS)
    sum(terms.values()).backward()
    assert method.levels.connectors[0].weight.grad.any()
