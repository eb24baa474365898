"""Any timm backbone in any detector: images of any size, channels first, pyramids of plain ViTs, refusals."""

import pytest
import torch

from detdistill.detectors.backbone import Neck, build_neck
from detdistill.engine.distillation import Distillation
from detdistill.errors import UserError
from detdistill.run.pairing import build_methods
from detdistill.types import Need
from tests.detectors.builders import scene, tiny

SWIN = "swin_tiny_patch4_window7_224"
STRIDES = (8, 16, 32)


@pytest.fixture(
    scope="module",
    params=[SWIN, "twins_svt_small", "mambaout_femto", "convnext_atto", "efficientnet_b0", "regnetx_002"],
)
def neck(request: pytest.FixtureRequest) -> Neck:
    return build_neck(request.param, STRIDES, 32, "none").eval()


@pytest.mark.parametrize("size", [(64, 96), (128, 160), (288, 320)])  # the last is larger than they were designed for
def test_images_of_any_size_give_maps_at_the_strides(neck: Neck, size: tuple[int, int]):
    with torch.no_grad():
        maps = neck(torch.rand(1, 3, *size)).values()
    shapes = [tuple(level.shape) for level in maps]
    assert shapes == [(1, 32, size[0] // stride, size[1] // stride) for stride in STRIDES]


def test_swin_windows_are_whole_and_shifted_in_every_stage():
    swin = build_neck(SWIN, STRIDES, 32, "none").body
    shifts = {}
    for name, module in swin.named_modules():
        if name.endswith("blocks.1"):
            shifts[name] = (tuple(module.window_size), tuple(module.shift_size))
    assert len(shifts) == 4
    assert set(shifts.values()) == {((7, 7), (3, 3))}


def test_a_backbone_for_one_image_size_is_refused_when_it_is_built():
    message = "'hiera_tiny_224': accepts images of one size only; choose another backbone, such as 'sam2_hiera"
    with pytest.raises(UserError, match=message):
        build_neck("hiera_tiny_224", STRIDES, 32, "none")


def test_strides_that_the_backbone_lacks_are_refused():
    with pytest.raises(UserError, match="each stride must be twice"):
        build_neck("mobilenetv2_035", (8, 32), 32, "none")
    with pytest.raises(UserError, match="has no map of stride 2"):
        build_neck("convnextv2_atto", (2, 4, 8), 32, "none")


def test_deformable_detr_gets_the_maps_of_swin_with_channels_first():
    detector = tiny("deformable_detr", backbone=SWIN)
    output = detector.observe(*scene())
    shapes = [tuple(level.shape) for level in output.pyramids["neck"].levels]
    assert shapes == [(2, 32, 8, 12), (2, 32, 4, 6), (2, 32, 2, 3)]
    sum(output.losses.values()).backward()
    assert all(parameter.grad is not None for parameter in detector.backbone_parameters())


@pytest.mark.parametrize(
    ("teacher_backbone", "student_backbone"), [(SWIN, "resnet18"), ("resnet50", "mobilenetv2_100")]
)
def test_a_pair_with_different_backbones_trains(teacher_backbone: str, student_backbone: str):
    teacher = tiny("retinanet", backbone=teacher_backbone).eval()
    student = tiny("retinanet", seed=1, backbone=student_backbone)
    distillation = Distillation(student, build_methods({"pkd": {}, "crosskd": {}}, student.info, teacher.info)).train()
    batch, targets = scene()
    with torch.no_grad():
        teacher_output = teacher.observe(batch, need=distillation.need | Need(predictions=True))
    before = next(iter(student.backbone_parameters())).detach().clone()
    optimizer = torch.optim.SGD(distillation.parameters(), lr=0.01)
    terms = distillation(batch, targets, teacher_output=teacher_output)
    torch.stack(list(terms.values())).sum().backward()
    optimizer.step()
    assert any(name.startswith("pkd") for name in terms)
    assert all(term.isfinite() for term in terms.values())
    assert not torch.equal(next(iter(student.backbone_parameters())), before)


# ---- plain vision transformers


VIT = "vit_tiny_patch16_224"
HEADS = ("gfl", "faster_rcnn", "rt_detr", "deformable_detr", "adamixer")
OTHER_VITS = ("eva02_tiny_patch14_224", "xcit_nano_12_p8_224")


@pytest.mark.parametrize(("head", "name"), [*((head, VIT) for head in HEADS), *(("gfl", name) for name in OTHER_VITS)])
def test_every_kind_of_head_trains_on_a_plain_vit(head: str, name: str) -> None:
    detector = tiny(head, backbone=name)
    output = detector.train().observe(*scene())
    strides = detector.info.strides
    shapes = [tuple(level.shape[-2:]) for level in output.pyramids["neck"].levels]
    assert shapes == [(-(-64 // stride), -(-96 // stride)) for stride in strides]
    sum(output.losses.values()).backward()
    assert all(parameter.grad is not None for parameter in detector.backbone_parameters())


def test_a_detr_reads_the_map_of_a_vit_at_any_of_its_strides() -> None:
    for stride in (8, 16, 32):
        detector = tiny("detr", backbone=VIT, strides=(stride,))
        (level,) = detector.observe(scene()[0], need=Need(pyramids=frozenset({"neck"}))).pyramids["neck"].levels
        assert level.shape[-2:] == (64 // stride, 96 // stride)


def test_the_pyramid_of_a_vit_learns_as_fast_as_the_neck() -> None:
    detector = tiny("gfl", backbone=VIT)
    names = {id(parameter): name for name, parameter in detector.named_parameters()}
    backbone = {names[id(parameter)] for parameter in detector.backbone_parameters()}
    assert backbone == {name for name in names.values() if name.startswith("neck.body.body.")}
    assert any(name.startswith("neck.body.branches.") for name in names.values())


def test_coarser_levels_than_32_come_from_the_neck() -> None:
    neck = build_neck(VIT, (8, 16, 32, 64, 128), 32, "none")
    with torch.no_grad():
        levels = neck.eval()(torch.zeros(1, 3, 128, 160)).values()
    assert [tuple(level.shape[-2:]) for level in levels] == [(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)]


# ---- refusals


def test_strides_of_another_model_are_offered() -> None:
    message = r"its maps have strides \(16, 32, 64\), none of model.strides \(8,\); choose .* or another backbone, such"
    with pytest.raises(UserError, match=message):
        build_neck("efficientvit_m0", (8,), 32, "none")
    with pytest.raises(UserError, match=r"has no map of stride 8, only of strides .* begin with stride 16"):
        build_neck("efficientvit_m0", STRIDES, 32, "none")


def test_an_unknown_name_is_refused_with_a_similar_one() -> None:
    with pytest.raises(UserError, match=r"timm has no such model; did you mean 'resnet18'\?"):
        build_neck("resnt18", STRIDES, 32, "none")
