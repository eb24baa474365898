"""FGD: the golden total, its context blocks, its masks under padding, its options and presets."""

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
from tests.methods.pairs import built, looks, pair

TARGETS = Targets(tuple(BOXES), (torch.zeros(2, dtype=torch.long), torch.zeros(1, dtype=torch.long)))
TERMS = ("foreground", "background", "attention", "relation")


def given(**options: object) -> FGD:
    """FGD on maps of four channels at stride 8, in double."""
    torch.manual_seed(0)
    return FGD.build(FGDConfig(**options), info(4), info(4)).double()


@pytest.mark.parametrize("masks", ["stride", "published"])
@pytest.mark.parametrize(("temperature", "total"), [(0.5, 0.07346369660435202), (0.8, 0.06037395030517866)])
def test_golden_total_at_initialisation(temperature: float, total: float, masks: str):
    terms = given(temperature=temperature, masks=masks)(output(STUDENT), output(TEACHER), TARGETS)
    assert tuple(terms) == TERMS
    assert sum(terms.values()).item() == pytest.approx(total, rel=1e-6)
    assert terms["relation"].item() == pytest.approx(5e-6 * 781.326001709885, rel=1e-6)


def test_a_context_block_by_hand():
    # Two cells, two channels. The attention weighs cell 0 by 3/4: context (3/4 0 + 1/4 4, 3/4 8 + 1/4 0) = (1, 6). Half the channels are one
    # channel, whose layer norm is its bias, here 2: the vector (2, 2 3) + (0, 1) is added everywhere.
    block = ContextBlock(2)
    features = torch.tensor([[[[0.0, 4]], [[8.0, 0]]]])
    with torch.no_grad():
        block.attend.weight.copy_(torch.tensor([0.0, torch.tensor(3.0).log() / 8]).view(1, 2, 1, 1))
        block.transform[1].bias.fill_(2)
        block.transform[3].weight.copy_(torch.tensor([1.0, 3]).view(2, 1, 1, 1))
        block.transform[3].bias.copy_(torch.tensor([0.0, 1]))
    seen = []
    block.transform[0].register_forward_hook(lambda layer, given, made: seen.append(given[0].flatten()))
    torch.testing.assert_close(block(features), features + torch.tensor([2.0, 7]).view(1, 2, 1, 1))
    torch.testing.assert_close(seen[0], torch.tensor([1.0, 6]))


def test_a_new_block_adds_nothing_and_both_sides_learn_unless_the_teachers_is_left_out():
    assert torch.equal(
        ContextBlock(6)(TEACHER[:, :1].float().expand(-1, 6, -1, -1)), TEACHER[:, :1].float().expand(-1, 6, -1, -1)
    )
    method = given()
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    method(output(student), output(teacher), TARGETS)["relation"].backward()
    assert teacher.grad is None
    assert student.grad.any()
    for blocks in (method.student_blocks, method.teacher_blocks):
        assert blocks[0].transform[3].weight.grad.any()
    plain = given(teacher_context=False)
    assert list(plain.teacher_blocks.parameters()) == []
    with torch.no_grad():  # what the student's block learns can't move the target
        plain.student_blocks[0].transform[3].bias.fill_(1.0)
    expected = 5e-6 * squared_distance(STUDENT + 1, TEACHER)
    torch.testing.assert_close(plain(output(STUDENT), output(TEACHER), TARGETS)["relation"], expected)


def test_it_is_zero_for_itself_and_the_same_for_everything_twice():
    method = given()
    assert all(term == 0 for term in method(output(TEACHER), output(TEACHER), TARGETS).values())
    once = method(output(STUDENT), output(TEACHER), TARGETS)
    twice = Targets(TARGETS.boxes * 2, TARGETS.labels * 2)
    torch.testing.assert_close(
        method(output(STUDENT.repeat(2, 1, 1, 1)), output(TEACHER.repeat(2, 1, 1, 1)), twice), once
    )


def test_padding_moves_no_region_but_the_published_ones():
    # More padding with the same features in it (zeros): foreground and background fall by the attention's share alone, A = HW softmax.
    student, teacher, sizes = STUDENT, TEACHER, torch.tensor([[48, 64], [48, 64]])
    padded = [F.pad(side, (0, 5, 0, 3)) for side in (student, teacher)]
    regions = torch.stack(focal_masks(TARGETS.boxes, (6, 8), 8, sizes))
    grown = F.pad(regions, (0, 5, 0, 3))
    for masks, same in (("stride", True), ("published", False)):
        method = given(masks=masks, weight_foreground=1.0, weight_background=1.0)
        terms = method(*(output(side, sizes=sizes) for side in padded), TARGETS)
        expected = focal_distance(*padded, grown, 0.5)
        assert torch.allclose(torch.stack([terms["foreground"], terms["background"]]), expected) is same


def test_it_sums_over_levels_and_reads_the_neck_alone():
    student, teacher = pair("fcos", "faster_rcnn")
    method = built(
        "fgd", student, teacher, weight_foreground=1.0, weight_background=2.0, weight_attention=3.0, weight_relation=4.0
    )
    assert method.need == Need(pyramids=frozenset({"neck"}))
    assert method.levels.strides == ((8, 8), (16, 16), (32, 32))
    mine, theirs, targets = looks(method, student, teacher)
    terms = method(mine, theirs, targets)
    necks = mine.pyramids["neck"].levels, theirs.pyramids["neck"].levels[1:]
    expected = torch.zeros(4)
    for stride, s, t in zip((8, 16, 32), *necks, strict=True):
        regions = torch.stack(focal_masks(targets.boxes, s.shape[-2:], stride, mine.pyramids["neck"].sizes))
        expected += torch.stack(
            [*focal_distance(s, t, regions, 0.5), attention_distance(s, t, 0.5), squared_distance(s, t)]
        )
    torch.testing.assert_close(torch.stack([terms[name] for name in TERMS]), expected * torch.tensor([1.0, 2, 3, 4]))
    sum(terms.values()).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.any() for p in student.backbone_parameters())


def test_without_objects_it_is_finite_and_all_background():
    student, teacher = pair("fcos")
    method = built("fgd", student, teacher)
    terms = method(*looks(method, student, teacher, scene(objects=False)))
    assert terms["foreground"] == 0
    assert terms["background"] > 0
    assert all(term.isfinite() for term in terms.values())


def test_a_term_of_weight_zero_is_left_out_with_what_it_learns():
    method = given(weight_background=0, weight_relation=0)
    assert list(method.parameters()) == []
    assert set(method(output(STUDENT), output(TEACHER), TARGETS)) == {"foreground", "attention"}


# a, b, g, l and T of the released configurations, and g and T of the paper's table.
PUBLISHED = {
    "faster_rcnn": ((5e-5, 2.5e-5, 5e-5, 5e-7, 0.5), (5e-5, 0.5)),
    "retinanet": ((1e-3, 5e-4, 5e-4, 5e-6, 0.5), (1e-3, 0.5)),
    "gfl": ((1e-3, 5e-4, 5e-4, 5e-6, 0.5), (1e-3, 0.5)),
    "fcos": ((1.6e-3, 8e-4, 8e-4, 8e-6, 0.8), (8e-3, 0.5)),
}


@pytest.mark.parametrize("head", PUBLISHED)
def test_presets_are_as_published_in_code_and_paper(head: str):
    teacher = tiny(head).info
    code, paper = (resolve({"fgd": options}, teacher, teacher)["fgd"] for options in ({}, {"variant": "paper"}))
    weights = [f"weight_{term}" for term in TERMS]
    assert tuple(code[name] for name in [*weights, "temperature"]) == PUBLISHED[head][0]
    assert (paper["weight_attention"], paper["temperature"]) == PUBLISHED[head][1]
    assert {name for name in code if code[name] != paper[name]} <= {"variant", "weight_attention", "temperature"}
    assert code["levels"] == (4 if head == "faster_rcnn" else None)
    assert preset("fgd", teacher, teacher, given={"variant": "code"}) == preset("fgd", teacher, teacher)


def test_what_it_cannot_serve_is_refused_at_build():
    with pytest.raises(UserError, match="method fgd: no level in common"):
        FGD.build(FGDConfig(), info(4, (4,)), info(4))
    nothing = {f"weight_{term}": 0.0 for term in TERMS}
    with pytest.raises(UserError, match="method fgd: all its weights are 0"):
        FGD.build(FGDConfig(**nothing), info(4), info(4))


def test_widths_may_differ():
    torch.manual_seed(0)
    method = FGD.build(FGDConfig(), info(2), info(4)).double()
    terms = method(output(STUDENT[:, :2]), output(TEACHER), TARGETS)
    sum(terms.values()).backward()
    assert method.levels.connectors[0].weight.grad.any()
