"""CLoCKDistill's memory distillation: a value by hand, masks with padding, pairs by stride, refusals."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detdistill.errors import UserError
from detdistill.geometry import focal_masks
from detdistill.losses import masked_squares, region_squares
from detdistill.methods.clockdistill import CLoCKDistill, CLoCKDistillConfig
from detdistill.types import DetectorInfo, DetectorOutput, Need, Targets
from tests.detectors.builders import scene, tiny
from tests.losses.test_attention import BOXES
from tests.losses.test_features import STUDENT, TEACHER
from tests.methods import maps
from tests.methods.pairs import method_inputs, pair

TARGETS = Targets(tuple(BOXES), (torch.zeros(2, dtype=torch.long), torch.zeros(1, dtype=torch.long)))


def info(channels: int, strides: tuple[int, ...] = (8,)) -> DetectorInfo:
    """Returns a detector whose memory has this number of channels."""
    return replace(maps.info(channels, strides), channels={"neck": channels + 1, "memory": channels})


def output(*levels: Tensor, strides: tuple[int, ...] = (8,), sizes: Tensor | None = None) -> DetectorOutput:
    """Returns an output whose memory has these levels."""
    return DetectorOutput({"memory": maps.output(*levels, strides=strides, sizes=sizes).pyramids["neck"]})


def double_method(**options: object) -> CLoCKDistill:
    """Returns the method on memories of four channels at stride 8, in double precision, with default weights of 1."""
    weights = {"weight_foreground": 1.0, "weight_background": 1.0}
    return CLoCKDistill.build(CLoCKDistillConfig(**weights | options), info(4), info(4)).double()


def test_by_hand():
    # One image of 2 x 3 cells of stride 8, one channel. The box 1..7 covers columns 0 to 1 and rows 0 to 1, because
    # ceil(7/8) is included: four cells with 1/4 each. The other two cells have 1/2 each. The squares are 1 4 9 / 16 25
    # 36: the foreground is (1 + 4 + 16 + 25) / 4, the background is (9 + 36) / 2.
    student = torch.tensor([[[[1.0, 2, 3], [4, 5, 6]]]], dtype=torch.float64)
    targets = Targets((torch.tensor([[1.0, 1, 7, 7]]),), (torch.tensor([0]),))
    method = CLoCKDistill.build(
        CLoCKDistillConfig(weight_foreground=2.0, weight_background=10.0), info(1), info(1)
    ).double()
    terms = method(output(student), output(torch.zeros_like(student)), targets)
    assert {name: term.item() for name, term in terms.items()} == {"foreground": 2 * 46 / 4, "background": 10 * 45 / 2}


def test_region_squares_is_one_masked_sum_per_region():
    regions = torch.stack(focal_masks(BOXES, (6, 8), 8, torch.tensor([[48, 64]] * 2)))
    expected = torch.stack([masked_squares(STUDENT, TEACHER, region) / 2 for region in regions])
    torch.testing.assert_close(region_squares(STUDENT, TEACHER, regions), expected)


def test_terms_are_zero_for_equal_maps_and_the_teacher_gets_no_gradient():
    method = double_method()
    assert list(method.parameters()) == []  # equal channel counts
    assert all(term == 0 for term in method(output(TEACHER), output(TEACHER), TARGETS).values())
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    sum(method(output(student), output(teacher), TARGETS).values()).backward()
    assert teacher.grad is None
    # Every cell is inside its image and is foreground or background, so every cell has a gradient.
    assert (student.grad != 0).all()
    assert torch.equal(student.grad.sign(), (student - teacher).detach().sign())


def test_default_weights_are_as_published_and_a_term_of_weight_zero_is_left_out():
    config = CLoCKDistillConfig()
    assert (config.weight_foreground, config.weight_background, config.pyramid) == (5e-5, 1e-7, "memory")
    plain = double_method()(output(STUDENT), output(TEACHER), TARGETS)
    scaled = double_method(weight_background=3.0)(output(STUDENT), output(TEACHER), TARGETS)
    torch.testing.assert_close(scaled, {"foreground": plain["foreground"], "background": 3 * plain["background"]})
    foreground = double_method(weight_background=0.0)(output(STUDENT), output(TEACHER), TARGETS)
    torch.testing.assert_close(foreground, {"foreground": plain["foreground"]})


def test_padding_or_duplicating_the_batch_changes_nothing():
    method, sizes = double_method(), torch.tensor([[48, 64], [40, 50]])
    once = method(output(STUDENT, sizes=sizes), output(TEACHER, sizes=sizes), TARGETS)
    padded_student = output(F.pad(STUDENT, (0, 5, 0, 3), value=1.0), sizes=sizes)
    padded_teacher = output(F.pad(TEACHER, (0, 5, 0, 3), value=-1.0), sizes=sizes)
    torch.testing.assert_close(method(padded_student, padded_teacher, TARGETS), once)
    doubled = [output(side.repeat(2, 1, 1, 1), sizes=sizes.repeat(2, 1)) for side in (STUDENT, TEACHER)]
    torch.testing.assert_close(method(*doubled, Targets(TARGETS.boxes * 2, TARGETS.labels * 2)), once)


def test_levels_are_paired_by_stride_and_summed():
    student, teacher = info(4, (8, 16)), info(4, (4, 8, 16))
    config = CLoCKDistillConfig(weight_foreground=1.0, weight_background=1.0)
    method = CLoCKDistill.build(config, student, teacher).double()
    assert method.levels.strides == ((8, 8), (16, 16))
    coarse_student, coarse_teacher = STUDENT[..., ::2, ::2], TEACHER[..., ::2, ::2]
    fine_teacher = TEACHER.repeat_interleave(2, 2).repeat_interleave(2, 3)
    sizes = torch.tensor([[48, 64]] * 2)
    student_output = output(STUDENT, coarse_student, strides=(8, 16), sizes=sizes)
    teacher_output = output(fine_teacher, TEACHER, coarse_teacher, strides=(4, 8, 16), sizes=sizes)
    expected = sum(
        region_squares(s, t, torch.stack(focal_masks(BOXES, s.shape[-2:], stride, sizes)))
        for s, t, stride in ((STUDENT, TEACHER, 8), (coarse_student, coarse_teacher, 16))
    )
    torch.testing.assert_close(torch.stack(list(method(student_output, teacher_output, TARGETS).values())), expected)


def test_detectors_with_an_encoder():
    student, teacher = pair("deformable_detr")
    config = CLoCKDistillConfig(weight_foreground=1.0, weight_background=1.0)
    method = CLoCKDistill.build(config, student.info, teacher.info)
    assert method.need == Need(pyramids=frozenset({"memory"}))
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    terms = method(student_output, teacher_output, targets)
    student_memory, teacher_memory = student_output.pyramids["memory"], teacher_output.pyramids["memory"]
    expected = sum(
        region_squares(s, t, torch.stack(focal_masks(targets.boxes, s.shape[-2:], stride, student_memory.sizes)))
        for s, t, stride in zip(student_memory.levels, teacher_memory.levels, student_memory.strides, strict=True)
    )
    torch.testing.assert_close(torch.stack(list(terms.values())), expected)
    sum(terms.values()).backward()
    assert any(p.grad is not None and p.grad.any() for name, p in student.named_parameters() if ".encoder." in name)
    assert all(p.grad is None for p in teacher.parameters())
    terms = method(*method_inputs(method, student, teacher, scene(objects=False)))
    assert terms["foreground"] == 0 and terms["background"] > 0


def test_channel_counts_may_differ_and_the_neck_may_be_used():
    torch.manual_seed(0)
    method = CLoCKDistill.build(CLoCKDistillConfig(), info(2), info(4)).double()
    sum(method(output(STUDENT[:, :2]), output(TEACHER), TARGETS).values()).backward()
    assert method.levels.connectors[0].weight.grad.any()
    student, teacher = tiny("fcos"), tiny("retinanet")
    method = CLoCKDistill.build(CLoCKDistillConfig(pyramid="neck"), student.info, teacher.info)
    assert method.need == Need(pyramids=frozenset({"neck"}))


def test_build_refuses_unsuitable_detectors_and_options():
    with pytest.raises(UserError, match="method clockdistill: no pyramid 'memory' on the student"):
        CLoCKDistill.build(CLoCKDistillConfig(), maps.info(4), info(4))
    with pytest.raises(UserError, match="method clockdistill: no level in common"):
        CLoCKDistill.build(CLoCKDistillConfig(), info(4, (4,)), info(4))
    with pytest.raises(UserError, match="method clockdistill: all its weights are 0"):
        CLoCKDistill.build(CLoCKDistillConfig(weight_foreground=0.0, weight_background=0.0), info(4), info(4))
