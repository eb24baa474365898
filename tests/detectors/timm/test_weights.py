"""Weights of a backbone are loaded whole, under the names of timm's extractor, or refused."""

from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file, save_model

from detdistill.detectors import state_dicts
from detdistill.detectors.backbone import build_neck
from detdistill.detectors.timm import weights as backbone_weights
from detdistill.errors import UserError
from tests.detectors.builders import tiny

SWIN = "swin_tiny_patch4_window7_224"
STRIDES = (8, 16, 32)


@pytest.mark.parametrize("name", [SWIN, "twins_svt_small"])
def test_pretrained_weights_of_transformers_are_renamed(name: str, monkeypatch: pytest.MonkeyPatch):
    plain = timm.create_model(name, pretrained=False)
    monkeypatch.setattr(backbone_weights, "_pretrained", lambda name: plain.state_dict())
    loaded = embedding_weights(build_neck(name, STRIDES, 32, "default").body)
    expected = embedding_weights(plain)
    assert loaded
    assert all(torch.equal(value, expected[key]) for key, value in loaded.items())


def embedding_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of the patch embeddings, by the part of their names that does not depend on the wrapper."""
    return {key.split("patch_embed")[-1]: value for key, value in module.state_dict().items() if "patch_embed" in key}


def test_pretrained_weights_of_stage_lists_are_renamed(monkeypatch: pytest.MonkeyPatch):
    # The feature extractor calls `stages.0` of the plain model `stages_0`.
    plain = timm.create_model("convnextv2_atto", pretrained=False)
    extractor = timm.create_model("convnextv2_atto", features_only=True, pretrained=False)
    monkeypatch.setattr(backbone_weights, "_pretrained", lambda name: plain.state_dict())
    backbone_weights.load_backbone(extractor, "convnextv2_atto", "default")
    assert torch.equal(extractor.stages_0.blocks[0].conv_dw.weight, plain.stages[0].blocks[0].conv_dw.weight)


def test_weights_from_a_file_are_loaded_whole_or_refused(tmp_path: Path):
    torch.manual_seed(5)
    plain = timm.create_model("mobilenetv2_035", pretrained=False)
    file = tmp_path / "backbone.safetensors"
    save_file(plain.state_dict(), file)
    neck = build_neck("mobilenetv2_035", STRIDES, 32, str(file))
    assert torch.equal(neck.body.conv_stem.weight, plain.conv_stem.weight)
    with pytest.raises(UserError, match="give weights of the backbone resnet18"):
        build_neck("resnet18", STRIDES, 32, str(file))


@pytest.mark.parametrize("head", ["gfl", "faster_rcnn", "deformable_detr"])
def test_the_backbone_of_a_run_is_loaded_whatever_its_head(head: str, tmp_path: Path) -> None:
    trained = tiny(head, seed=3, backbone="resnet18")
    save_model(trained, str(tmp_path / "model.safetensors"))
    detector = tiny("fcos", seed=4, backbone="resnet18", backbone_weights=str(tmp_path))
    for actual, expected in zip(detector.backbone_parameters(), trained.backbone_parameters(), strict=True):
        assert torch.equal(actual, expected)
    with pytest.raises(UserError, match="tensors of mobilenetv2_035 are missing"):
        tiny("fcos", backbone_weights=str(tmp_path))
    with pytest.raises(UserError, match="can't read the file"):
        tiny("fcos", backbone_weights=str(tmp_path.parent))


def test_the_message_names_the_flag_if_pretrained_weights_are_out_of_reach(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(state_dicts, "reachable", lambda host: False)
    monkeypatch.setattr(state_dicts, "_is_cached", lambda repository: False)
    with pytest.raises(UserError, match=r"--backbone-weights default: .* can't be reached; give a FILE, or none"):
        build_neck("resnet18", STRIDES, 32, "default")


@pytest.mark.parametrize("name", ["resnet18", "convnextv2_atto", "hgnetv2_b0"])
@pytest.mark.parametrize("prefix", ["", "backbone.", "backbone.body.", "module.encoder."])
def test_the_backbone_in_a_file_of_another_training_is_found(
    name: str, prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """The file holds a whole detector, a classifier, or an encoder; the extractor renames stages or wraps the model."""
    torch.manual_seed(6)
    plain = timm.create_model(name, pretrained=False)
    file = tmp_path / "checkpoint.pth"
    state = {prefix + key: value for key, value in plain.state_dict().items()}
    torch.save({"state_dict": {**state, "bbox_head.weight": torch.ones(2)}, "meta": Namespace(epoch=3)}, file)
    loaded = build_neck(name, STRIDES, 32, str(file)).body.state_dict()
    last_parts = {key.removeprefix("model.").replace("_", "."): value for key, value in loaded.items()}
    expected = {key.replace("_", "."): value for key, value in plain.state_dict().items()}
    assert last_parts.keys() <= expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in last_parts.items())
    told = f"--backbone-weights {file}: stripped the prefix {prefix!r}; left out 1 tensor without it"
    assert (told in caplog.text) == bool(prefix)


def test_of_a_backbone_and_its_average_the_average_is_taken_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    plain, average = (timm.create_model("resnet18", pretrained=False) for _ in range(2))
    file = tmp_path / "checkpoint.pth.tar"
    torch.save({"state_dict": plain.state_dict(), "state_dict_ema": average.state_dict()}, file)
    for choice, expected in (("", average), ("#state_dict", plain)):
        neck = build_neck("resnet18", STRIDES, 32, f"{file}{choice}")
        assert torch.equal(neck.body.conv1.weight, expected.conv1.weight)
    assert f"took the moving average (state_dict_ema); {file}#state_dict takes the other" in caplog.text
