"""Weights are loaded whole or refused: teachers, torchvision's columns, backbones."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models.detection import fasterrcnn_resnet50_fpn, fcos_resnet50_fpn, retinanet_resnet50_fpn

from detdistill.detectors import backbone as backbones
from detdistill.detectors.backbone import build_neck
from detdistill.detectors.build import build
from detdistill.detectors.weights import load_strictly, load_teacher
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.run.folder import Card, RunFolder
from detdistill.run.models import load
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
    assert torch.equal(
        teacher.model.head.classification_head.cls_logits.weight,
        detector.model.head.classification_head.cls_logits.weight,
    )
    with pytest.raises(UserError, match="of another shape"):
        load_teacher(f"retinanet:mobilenetv2_035={file}", CLASSES, SMALL.model_copy(update={"channels": 64}))


def test_weights_of_frozen_norms_are_read_as_they_were_trained(tmp_path: Path):
    """Without counters they come from frozen norms, whose eps torchvision sets to 0 for these."""
    host = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    for frozen in (True, False):
        state = {
            name: value
            for name, value in host.state_dict().items()
            if not (frozen and name.endswith("num_batches_tracked"))
        }
        torch.save(state, tmp_path / "own.pt")
        teacher, _ = load_teacher(f"torchvision:retinanet_resnet50_fpn={tmp_path / 'own.pt'}", CLASSES)
        assert {norm.eps for norm in teacher.modules() if isinstance(norm, torch.nn.BatchNorm2d)} == {
            0.0 if frozen else 1e-5
        }


def test_a_two_stage_file_without_a_column_for_the_background_is_refused(tmp_path: Path):
    host = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=len(CLASSES))
    torch.save(host.state_dict(), tmp_path / "own.pt")
    with pytest.raises(UserError, match=r"own.pt: has 3 class columns, the data have 3 classes"):
        load_teacher(f"torchvision:fasterrcnn_resnet50_fpn={tmp_path / 'own.pt'}", CLASSES)


def test_a_vit_gives_one_level():
    with pytest.raises(
        UserError, match=r"timm:vit_tiny_patch16_224: teacher.model.strides \(8, 16\): a ViT gives one level"
    ):
        load_teacher("timm:vit_tiny_patch16_224", CLASSES, ModelConfig(strides=(8, 16)))


@pytest.mark.parametrize("head", ["deformable_detr", "adamixer"])
def test_a_run_over_loaded_weights_goes_on_with_its_norms_as_they_were(head: str, tmp_path: Path):
    save_file(timm.create_model("mobilenetv2_035", pretrained=False).state_dict(), tmp_path / "body.safetensors")
    for weights, frozen in ((str(tmp_path / "body.safetensors"), True), ("none", False)):
        config = ModelConfig(
            name=f"{head}:mobilenetv2_035", strides=(8, 16, 32), channels=32, decoder_layers=2, backbone_weights=weights
        )
        folder = RunFolder(tmp_path / weights.rpartition("/")[2].partition(".")[0])
        folder.path.mkdir()
        folder.save(build(config, CLASSES), Card(model=config, classes=CLASSES, category_ids=(1, 2, 3), image_size=64))
        detector = load(folder.path).train()
        norms = [module for module in detector.family.body().modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert norms and all(norm.training != frozen and norm.weight.requires_grad != frozen for norm in norms)


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
