"""Token alignment: cosines by hand and golden, choice of levels, padding, teachers that are not detectors."""

from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.autograd import gradcheck

from detdistill.detectors.vit import feature_teacher
from detdistill.errors import UserError
from detdistill.losses import token_cosine
from detdistill.methods.token_alignment import TokenAlignment, TokenAlignmentConfig
from detdistill.types import Need, Targets
from tests.detectors.builders import tiny
from tests.losses.test_features import STUDENT, TEACHER
from tests.methods.maps import info, output
from tests.methods.pairs import method_inputs

NO_OBJECTS = Targets((torch.zeros(0, 4),) * 2, (torch.zeros(0, dtype=torch.long),) * 2)


def double_method(
    student: int = 4, teacher: int = 4, strides: tuple[int, ...] = (8,), **options: object
) -> TokenAlignment:
    """Returns the method on maps with these channel counts, in double precision.

    The projector is the identity if the counts are equal.
    """
    torch.manual_seed(0)
    method = TokenAlignment.build(
        TokenAlignmentConfig(**options), info(student, strides), info(teacher, strides)
    ).double()
    if student == teacher:
        torch.nn.init.dirac_(method.projector.weight)
        torch.nn.init.zeros_(method.projector.bias)
    return method


def test_token_cosine_by_hand_and_golden():
    # Two channels, three cells: parallel, at a right angle, opposite: 0, 1, 2. Weights 2, 1, 1: (0 + 1 + 2) / 4 = 0.75.
    student = torch.tensor([[[[2.0, 3, 1]], [[0.0, 0, 1]]]])
    teacher = torch.tensor([[[[5.0, 0, -4]], [[0.0, 7, -4]]]])
    torch.testing.assert_close(token_cosine(student, teacher, torch.tensor([[[2.0, 1, 1]]])), torch.tensor(0.75))
    # Computed by us with the published formula on these inputs.
    assert token_cosine(STUDENT, TEACHER, torch.ones(2, 6, 8)).item() == pytest.approx(1.0025961997949848, rel=1e-9)
    torch.testing.assert_close(
        token_cosine(3 * STUDENT, TEACHER / 7, torch.ones(2, 6, 8)), token_cosine(STUDENT, TEACHER, torch.ones(2, 6, 8))
    )


def test_token_cosine_gradient():
    weights = torch.rand(1, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    student, teacher = STUDENT[:1, :, :2, :3].clone().requires_grad_(), TEACHER[:1, :, :2, :3].clone().requires_grad_()
    assert gradcheck(lambda maps: token_cosine(maps, teacher, weights), (student,))
    token_cosine(student, teacher, weights).backward()
    assert teacher.grad is None
    assert token_cosine(student, teacher, torch.zeros(1, 2, 3)) == 0  # 0 and not NaN if no cell is inside
    zeros = torch.zeros(1, 4, 2, 3).double().requires_grad_()
    token_cosine(zeros, teacher, weights).backward()
    assert zeros.grad.isfinite().all()
    with pytest.raises(ValueError, match="maps of one shape"):
        token_cosine(student, teacher[:, :1], weights)


def test_the_term_is_the_weighted_cosine_after_the_projector_and_zero_for_equal_maps():
    method = double_method(weight=3.0)
    terms = method(output(STUDENT), output(TEACHER), NO_OBJECTS)
    assert terms.keys() == {"tokens"}
    assert terms["tokens"].item() == pytest.approx(3 * 1.0025961997949848, rel=1e-9)
    assert method(output(TEACHER), output(TEACHER), NO_OBJECTS)["tokens"].abs() < 1e-12
    narrow = double_method(student=2)
    student, teacher = STUDENT[:, :2].clone().requires_grad_(), TEACHER.clone().requires_grad_()
    term = narrow(output(student), output(teacher), NO_OBJECTS)["tokens"]
    torch.testing.assert_close(term, 5 * token_cosine(narrow.projector(student), teacher, torch.ones(2, 6, 8)))
    term.backward()
    assert student.grad.any() and narrow.projector.weight.grad.any() and teacher.grad is None


def test_duplicating_the_batch_changes_nothing():
    method, sizes = double_method(), torch.tensor([[48, 64], [20, 33]])
    once = method(output(STUDENT, sizes=sizes), output(TEACHER, sizes=sizes), NO_OBJECTS)["tokens"]
    doubled = [output(side.repeat(2, 1, 1, 1), sizes=sizes.repeat(2, 1)) for side in (STUDENT, TEACHER)]
    torch.testing.assert_close(method(*doubled, NO_OBJECTS)["tokens"], once)


def test_only_cells_that_begin_inside_count_so_padding_changes_nothing():
    method, sizes = double_method(), torch.tensor([[48, 64], [20, 33]])  # 3 x 5 cells of the second image are inside
    term = method(output(STUDENT, sizes=sizes), output(TEACHER, sizes=sizes), NO_OBJECTS)["tokens"]
    cosine = F.cosine_similarity(STUDENT, TEACHER, dim=1)
    expected = 5 * ((1 - cosine[0]).sum() + (1 - cosine[1, :3, :5]).sum()) / (48 + 15)
    torch.testing.assert_close(term, expected)
    padded = [output(F.pad(side, (0, 5, 0, 3), value=7.0), sizes=sizes) for side in (STUDENT, -TEACHER)]
    plain = method(output(STUDENT, sizes=sizes), output(-TEACHER, sizes=sizes), NO_OBJECTS)["tokens"]
    torch.testing.assert_close(method(*padded, NO_OBJECTS)["tokens"], plain)


def test_the_teachers_map_is_resized_to_the_students():
    method = double_method()
    small = TEACHER[..., ::2, ::2]
    resized = F.interpolate(small, (6, 8), mode="bilinear", align_corners=False)
    term = method(output(STUDENT), output(small, sizes=torch.tensor([[48, 64]] * 2)), NO_OBJECTS)["tokens"]
    torch.testing.assert_close(term, 5 * token_cosine(STUDENT, resized, torch.ones(2, 6, 8)))


def test_the_level_is_the_coarsest_common_one_or_the_one_of_the_option():
    student, teacher = info(4, (8, 16, 32, 64)), info(4, (4, 8, 16, 32))
    assert TokenAlignment.build(TokenAlignmentConfig(), student, teacher).stride == 32
    method = TokenAlignment.build(TokenAlignmentConfig(stride=16), student, teacher).double()
    coarse_student, coarse_teacher = STUDENT[..., :3, :4], TEACHER[..., :3, :4]
    student_output = output(STUDENT, coarse_student, strides=(8, 16))
    teacher_output = output(TEACHER, coarse_teacher, strides=(8, 16))
    expected = 5 * token_cosine(method.projector(coarse_student), coarse_teacher, torch.ones(2, 3, 4))
    torch.testing.assert_close(method(student_output, teacher_output, NO_OBJECTS)["tokens"], expected)


def test_the_teachers_pyramid_has_the_same_name_or_is_its_neck():
    student = replace(info(4, (32,)), channels={"neck": 8, "memory": 4})
    method = TokenAlignment.build(TokenAlignmentConfig(pyramid="memory"), student, info(6, (32,)))
    assert method.student_need == Need(pyramids=frozenset({"memory"}))
    assert method.need == Need(pyramids=frozenset({"neck"}))
    assert method.projector.weight.shape == (6, 4, 1, 1)
    same = TokenAlignment.build(TokenAlignmentConfig(pyramid="memory"), student, student)
    assert same.need == same.student_need and same.projector.weight.shape == (4, 4, 1, 1)


@pytest.mark.parametrize("head", ["fcos", "deformable_detr"])
def test_a_vit_can_teach_any_detector(head: str, tmp_path: object):
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), f"{tmp_path}/vit.safetensors")
    teacher, student = feature_teacher(f"timm:test_vit={tmp_path}/vit.safetensors"), tiny(head, seed=1).eval()
    pyramid = "memory" if head == "deformable_detr" else "neck"
    method = TokenAlignment.build(TokenAlignmentConfig(pyramid=pyramid), student.info, teacher.info)
    assert method.stride == 32
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    term = method(student_output, teacher_output, targets)["tokens"]
    is_inside = torch.ones(2, 2, 3)  # in an image of 50 x 70 pixels all 2 x 3 cells of stride 32 begin inside
    s, t = student_output.pyramids[pyramid].levels[-1], teacher_output.pyramids["neck"].levels[0]
    torch.testing.assert_close(term, 5 * token_cosine(method.projector(s), t, is_inside))
    term.backward()
    assert any(p.grad is not None and p.grad.any() for p in student.backbone_parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_build_refuses_unsuitable_detectors_and_options():
    for config, student, teacher, message in (
        (TokenAlignmentConfig(), info(4, (8,)), info(4, (16,)), "no level in common"),
        (
            TokenAlignmentConfig(stride=8),
            info(4, (8, 16)),
            info(4, (16,)),
            "stride is 8, which is not a stride of both detectors; choose from 16",
        ),
        (
            TokenAlignmentConfig(pyramid="memory"),
            info(4),
            info(4),
            "no pyramid 'memory' on the student; the student has neck",
        ),
    ):
        with pytest.raises(UserError, match=f"method token_alignment: .*{message}"):
            TokenAlignment.build(config, student, teacher)
