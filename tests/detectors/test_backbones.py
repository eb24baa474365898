"""Any timm backbone under any head: transformers made for one size take every size, maps come channels first, pairs may differ."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_model

from detdistill.detectors import backbone as backbones
from detdistill.detectors.backbone import build_neck
from detdistill.engine.distillation import Distillation
from detdistill.errors import UserError
from detdistill.run.pairing import build_methods
from detdistill.types import Need
from tests.detectors.builders import scene, tiny

SWIN = "swin_tiny_patch4_window7_224"
STRIDES = (8, 16, 32)


@pytest.fixture(
    scope="module", params=[SWIN, "mvitv2_tiny", "mambaout_femto", "convnext_atto", "efficientnet_b0", "regnetx_002"]
)
def neck(request: pytest.FixtureRequest) -> backbones.Neck:
    return build_neck(request.param, STRIDES, 32, "none").eval()


@pytest.mark.parametrize("size", [(64, 96), (128, 160)])
def test_images_of_any_size_give_maps_at_the_strides(neck: backbones.Neck, size: tuple[int, int]):
    with torch.no_grad():
        maps = neck(torch.rand(1, 3, *size)).values()
    assert [tuple(level.shape) for level in maps] == [
        (1, 32, size[0] // stride, size[1] // stride) for stride in STRIDES
    ]


def test_swin_windows_are_whole_and_shifted_in_every_stage():
    body = build_neck(SWIN, STRIDES, 32, "none").body
    assert body.training  # it was tried at build, and is as before
    shifts = {}
    for name, module in body.named_modules():
        if name.endswith("blocks.1"):
            shifts[name] = (tuple(module.window_size), tuple(module.shift_size))
    assert len(shifts) == 4
    assert set(shifts.values()) == {((7, 7), (3, 3))}


@pytest.mark.parametrize("name", [SWIN, "twins_svt_small"])
def test_pretrained_transformers_find_their_names(name: str, monkeypatch: pytest.MonkeyPatch):
    plain = timm.create_model(name, pretrained=False)
    monkeypatch.setattr(backbones, "_pretrained", lambda name: plain.state_dict())
    body = build_neck(name, STRIDES, 32, "default").body
    state = {key.split("patch_embed")[-1]: value for key, value in body.state_dict().items() if "patch_embed" in key}
    known = {key.split("patch_embed")[-1]: value for key, value in plain.state_dict().items() if "patch_embed" in key}
    assert state
    assert all(torch.equal(value, known[key]) for key, value in state.items())


def test_a_backbone_of_one_size_is_refused_at_build():
    with pytest.raises(UserError, match="'hiera_tiny_224': takes images of one size only; take another, such as swin"):
        build_neck("hiera_tiny_224", STRIDES, 32, "none")


def test_the_host_that_masks_maps_sees_them_channels_first():
    detector = tiny("deformable_detr", backbone=SWIN)
    output = detector.observe(*scene())
    assert [tuple(level.shape) for level in output.pyramids["neck"].levels] == [
        (2, 32, 8, 12),
        (2, 32, 4, 6),
        (2, 32, 2, 3),
    ]
    sum(output.losses.values()).backward()
    assert all(parameter.grad is not None for parameter in detector.backbone_parameters())


@pytest.mark.parametrize(("taught", "student"), [(SWIN, "resnet18"), ("resnet50", "mobilenetv2_100")])
def test_pairs_of_other_backbones_take_a_step(taught: str, student: str):
    teacher, learner = tiny("retinanet", backbone=taught).eval(), tiny("retinanet", seed=1, backbone=student)
    distillation = Distillation(learner, build_methods({"pkd": {}, "crosskd": {}}, learner.info, teacher.info)).train()
    batch, targets = scene()
    with torch.no_grad():
        lesson = teacher.observe(batch, need=distillation.need | Need(predictions=True))
    before = next(iter(learner.backbone_parameters())).detach().clone()
    optimizer = torch.optim.SGD(distillation.parameters(), lr=0.01)
    terms = distillation(batch, targets, teacher_output=lesson)
    torch.stack(list(terms.values())).sum().backward()
    optimizer.step()
    assert any(name.startswith("pkd") for name in terms)
    assert all(term.isfinite() for term in terms.values())
    assert not torch.equal(next(iter(learner.backbone_parameters())), before)


@pytest.mark.parametrize("head", ["gfl", "faster_rcnn", "deformable_detr"])
def test_the_backbone_of_a_run_is_taken_whatever_its_head(head: str, tmp_path: Path) -> None:
    source = tiny(head, seed=3, backbone="resnet18")
    save_model(source, str(tmp_path / "model.safetensors"))
    taken = tiny("fcos", seed=4, backbone="resnet18", backbone_weights=str(tmp_path))
    for one, other in zip(taken.backbone_parameters(), source.backbone_parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(UserError, match="tensors of mobilenetv2_035 are missing"):
        tiny("fcos", backbone_weights=str(tmp_path))
    with pytest.raises(UserError, match="can't read the file"):
        tiny("fcos", backbone_weights=str(tmp_path.parent))
