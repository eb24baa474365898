"""Weights are loaded whole or refused: teachers, torchvision's columns, backbones."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models.detection import fcos_resnet50_fpn

from detdistill.detectors import backbone as backbones
from detdistill.detectors.backbone import build_neck
from detdistill.detectors.weights import load_strictly, load_teacher
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from tests.detectors.builders import CLASSES, tiny

SMALL = ModelConfig(strides=(8, 16, 32), channels=32, tower_depth=2)


def test_every_tensor_must_fit():
    detector = tiny("fcos", seed=1)
    state = {name: value.clone() for name, value in detector.state_dict().items()}
    other = tiny("fcos", seed=2)
    report = load_strictly(other, state, "weights.pt")
    assert report.complete
    assert report.matched == len(state)
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
    first = next(iter(state))
    for change, told in (
        ({first: None}, "1 missing"),
        ({"extra": torch.zeros(1)}, "1 unexpected"),
        ({first: torch.zeros(2)}, "1 of another shape"),
    ):
        bent = {name: value for name, value in {**state, **change}.items() if value is not None}
        with pytest.raises(UserError, match=rf"^weights.pt: .*{told}"):
            load_strictly(other, bent, "weights.pt")


@pytest.mark.parametrize("bare", [False, True])
def test_a_state_dict_of_the_users_own_teaches(tmp_path: Path, bare: bool):
    detector = tiny("retinanet", seed=3)
    file = tmp_path / "own.safetensors"
    save_file(detector.model.state_dict() if bare else detector.state_dict(), file)  # the host's own names, or ours
    teacher, report = load_teacher(f"retinanet:mobilenetv2_035={file}", CLASSES, SMALL)
    assert report.complete
    assert torch.equal(teacher.model.head.classification_head.cls_logits.weight, detector.model.head.classification_head.cls_logits.weight)
    with pytest.raises(UserError, match="of another shape"):
        load_teacher(f"retinanet:mobilenetv2_035={file}", CLASSES, SMALL.model_copy(update={"channels": 64}))


def test_torchvisions_coco_columns_are_picked_by_name(tmp_path: Path):
    host = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    file = tmp_path / "coco.pt"
    torch.save(host.state_dict(), file)
    teacher, _ = load_teacher(f"torchvision:fcos_resnet50_fpn={file}", ("cat", "dog"))
    assert len(teacher.info.classes) == 80
    picked = dict(zip(teacher.info.classes, teacher.columns.index.tolist(), strict=True))
    assert (picked["person"], picked["stop sign"], picked["toothbrush"]) == (1, 13, 90)  # category ids, with their gaps
    with pytest.raises(UserError, match="not a state dict of retinanet_resnet50_fpn"):
        load_teacher(f"torchvision:retinanet_resnet50_fpn={file}", CLASSES)


def test_what_is_no_teacher_is_told_in_one_line(tmp_path: Path):
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not a pickle")
    for path, told in (
        ("nowhere", "not a run folder"),
        ("torchvision:fcos_resnet50_fpm", "did you mean 'fcos_resnet50_fpn'"),
        (f"fcos:resnet18={broken}", "not a file of plain tensors"),
        (f"fcos:resnet18={tmp_path / 'none.pt'}", "can't read the file"),
    ):
        with pytest.raises(UserError, match=told) as error:
            load_teacher(path, CLASSES, SMALL)
        assert "\n" not in str(error.value)


def test_backbone_weights_from_a_file_are_whole_or_refused(tmp_path: Path):
    torch.manual_seed(5)
    plain = timm.create_model("mobilenetv2_035", pretrained=False)
    file = tmp_path / "backbone.safetensors"
    save_file(plain.state_dict(), file)
    neck = build_neck("mobilenetv2_035", (8, 16, 32), 32, str(file))
    assert torch.equal(neck.body.conv_stem.weight, plain.conv_stem.weight)
    with pytest.raises(UserError, match="give weights of this very backbone"):
        build_neck("resnet18", (8, 16, 32), 32, str(file))


def test_pretrained_weights_out_of_reach_name_the_flag(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backbones, "reachable", lambda host: False)
    monkeypatch.setattr(backbones, "_cached", lambda repository: False)
    with pytest.raises(UserError, match=r"--backbone-weights default: .* can't be reached; give a FILE, or none"):
        build_neck("resnet18", (8, 16, 32), 32, "default")


def test_stage_lists_of_timm_find_their_names(monkeypatch: pytest.MonkeyPatch):
    # Feature extractors call `stages.0` of the plain model `stages_0`.
    plain = timm.create_model("convnextv2_atto", pretrained=False)
    body = timm.create_model("convnextv2_atto", features_only=True, pretrained=False)
    monkeypatch.setattr(backbones, "_pretrained", lambda name: plain.state_dict())
    backbones.load_backbone(body, "convnextv2_atto", "default")
    assert torch.equal(body.stages_0.blocks[0].conv_dw.weight, plain.stages[0].blocks[0].conv_dw.weight)


def test_strides_a_backbone_lacks_are_refused():
    with pytest.raises(UserError, match="each stride must be twice"):
        build_neck("mobilenetv2_035", (8, 32), 32, "none")
    with pytest.raises(UserError, match="has no map of stride 2"):
        build_neck("convnextv2_atto", (2, 4, 8), 32, "none")
