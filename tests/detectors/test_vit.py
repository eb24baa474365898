"""ViTs as feature teachers: the tokens of the host on a grid of cells, strict weights, refusals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from detdistill.detectors import state_dicts, vit
from detdistill.detectors.images import normalize
from detdistill.detectors.statistics import IMAGENET
from detdistill.detectors.vit import FeatureTeacher, feature_teacher, is_vit_folder
from detdistill.errors import UserError
from detdistill.methods.pkd import PKD, PKDConfig
from detdistill.types import Batch, Need, TrainState
from tests.detectors.builders import scene, tiny

NECK = Need(pyramids=frozenset({"neck"}))
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 14,
    "image_size": 56,
}
REGISTERS = {"num_register_tokens": 4}
# By model type: config, model, further config fields, number of prefix tokens, attribute that holds the ViT.
FOLDERS = {
    "vit": (ViTConfig, ViTForImageClassification, {}, 1, "vit"),
    "dinov2": (Dinov2Config, Dinov2ForImageClassification, {}, 1, "dinov2"),
    "dinov2_with_registers": (Dinov2WithRegistersConfig, Dinov2WithRegistersModel, REGISTERS, 5, ""),
    "dinov3_vit": (DINOv3ViTConfig, DINOv3ViTModel, REGISTERS, 5, ""),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of the weights of timm's smallest ViT, with its classifier."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    save_file(timm.create_model("test_vit", pretrained=False).state_dict(), path)
    return str(path)


def write_model(model_type: str, folder: Path) -> Any:
    """Writes a tiny random model of that type to `folder`, and returns the model."""
    torch.manual_seed(0)
    config, model, fields, *_ = FOLDERS[model_type]
    host = model(config(**SMALL, **fields)).eval()
    host.save_pretrained(folder)
    return host


def test_a_token_is_a_cell_of_the_declared_stride(file: str):
    # 64 x 96 pixels are 2 x 3 cells of stride 32. The host gets 32 x 48 pixels, 2 x 3 patches, after one class token.
    teacher, (batch, _) = feature_teacher(f"timm:test_vit={file}"), scene()
    assert (teacher.info.kind, teacher.info.classes, teacher.info.strides) == ("vit", (), (32,))
    assert (
        teacher.info.channels == {"neck": 64}
        and teacher.info.towers is teacher.info.queries is teacher.info.proposals is None
    )
    output = teacher.observe(batch, need=NECK)
    neck = output.pyramids["neck"]
    assert neck.levels[0].shape == (2, 64, 2, 3) and neck.strides == (32,) and torch.equal(neck.sizes, batch.sizes)
    assert output.stages == () and not output.losses
    images = normalize(batch, (0.5,) * 3, (0.5,) * 3)  # mean and std of this model
    images = F.interpolate(images, (32, 48), mode="bilinear", antialias=True)
    host = timm.create_model("test_vit", checkpoint_path=file, dynamic_img_size=True).eval()
    with torch.no_grad():
        tokens = host.forward_features(images)[:, 1:]
    for row in range(2):
        for column in range(3):
            torch.testing.assert_close(neck.levels[0][:, :, row, column], tokens[:, 3 * row + column])
    assert neck.levels[0].std(dim=(2, 3)).min() > 0.01  # the cells differ, so a wrong order would be noticed


@pytest.mark.parametrize(("stride", "shape"), [(8, (8, 12)), (16, (4, 6)), (32, (2, 3)), (50, (2, 2)), (128, (1, 1))])
def test_every_stride_gives_a_map_of_whole_cells(file: str, stride: int, shape: tuple[int, int]):
    teacher, (batch, _) = feature_teacher(f"timm:test_vit={file}", stride), scene()
    (level,) = teacher.observe(batch, need=NECK).pyramids["neck"].levels
    assert level.shape == (2, 64, *shape) and level.isfinite().all()


def test_pixels_stay_in_their_cells(file: str):
    # Cell (y, x) of stride 50 becomes patch (y, x) of 16 pixels, although neither 64 nor 96 is a multiple of 50.
    teacher, (batch, _) = feature_teacher(f"timm:test_vit={file}", 50), scene()
    images = torch.zeros(1, 3, 64, 96)
    images[..., :50, 50:] = 1.0
    sizes = torch.tensor([[64, 96]])
    batch = replace(batch, images=images, sizes=sizes, originals=sizes, ids=torch.tensor([1]), names=("a",))
    resized = teacher._resized_images(batch)
    assert resized.shape == (1, 3, 32, 32)
    # After normalization with this model's mean and std, white is 1 and black is -1.
    torch.testing.assert_close(resized[0, 0, 2:14, 18:28], torch.ones(12, 10))
    torch.testing.assert_close(resized[0, 0, 2:14, 2:14], -torch.ones(12, 12))
    assert (resized[0, :, 22:] == 0).all()  # rows 64 to 100 are padding, which is gray


def test_pixels_in_the_padding_change_nothing(file: str):
    teacher, (batch, _) = feature_teacher(f"timm:test_vit={file}"), scene()
    changed_images = batch.images.clone()
    changed_images[1, :, 50:], changed_images[1, :, :, 70:] = 255, 255
    expected = neck_level(teacher, batch)
    torch.testing.assert_close(neck_level(teacher, replace(batch, images=changed_images)), expected)


def test_images_may_be_bytes_or_floats(file: str):
    teacher, (batch, _) = feature_teacher(f"timm:test_vit={file}"), scene()
    from_floats = neck_level(teacher, replace(batch, images=batch.images / 255))
    torch.testing.assert_close(from_floats, neck_level(teacher, batch))


def neck_level(teacher: FeatureTeacher, batch: Batch) -> torch.Tensor:
    """The only level of the teacher's pyramid `neck`."""
    return teacher.observe(batch, need=NECK).pyramids["neck"].levels[0]


def test_it_is_frozen_and_trains_a_student_with_a_feature_method(file: str):
    teacher, student = feature_teacher(f"timm:test_vit={file}"), tiny("fcos")
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert len(teacher.backbone_parameters()) == len(list(teacher.parameters())) > 10
    method = PKD.build(PKDConfig(least_positions=2), student.info, teacher.info)
    assert method.levels.strides == ((32, 32),)
    batch, targets = scene()
    terms = method(
        student.observe(batch, targets, need=method.student_need),
        teacher.observe(batch, need=method.need),
        targets,
        TrainState(),
    )
    terms["features"].backward()
    assert any(p.grad is not None and p.grad.any() for p in student.backbone_parameters())


def test_needs_beyond_the_neck_are_refused(file: str):
    teacher, (batch, targets) = feature_teacher(f"timm:test_vit={file}"), scene()
    for need, message in (
        (Need(pyramids=frozenset({"neck", "memory"})), "no pyramid 'memory';"),
        (Need(towers=frozenset({1})), "no towers;"),
        (Need(predictions=True, queries=True), "no predictions, queries;"),
        (Need(classify=True), "no proposals;"),
    ):
        with pytest.raises(ValueError, match=f"timm:test_vit is a ViT and has {message}"):
            teacher.observe(batch, need=need)
    with pytest.raises(ValueError, match="task losses"):
        teacher.observe(batch, targets)
    with pytest.raises(UserError, match="timm:test_vit: a ViT gives features only, and can't detect"):
        teacher.detect(batch)


@pytest.mark.parametrize("model_type", FOLDERS)
def test_a_folder_of_transformers_is_loaded(model_type: str, tmp_path: Path):
    host = write_model(model_type, tmp_path)
    prefix_tokens, vit_attribute = FOLDERS[model_type][3:]
    assert is_vit_folder(tmp_path) and not is_vit_folder(tmp_path / "no")
    teacher, (batch, _) = feature_teacher(f"hf:{tmp_path}"), scene()
    assert teacher.info.channels == {"neck": 32}
    (level,) = teacher.observe(batch, need=NECK).pyramids["neck"].levels
    # Without a processor in the folder, mean and std are ImageNet's.
    images = F.interpolate(normalize(batch, *IMAGENET), (28, 42), mode="bilinear", antialias=True)
    options = {"interpolate_pos_encoding": True} if model_type == "vit" else {}
    with torch.no_grad():
        tokens = getattr(host, vit_attribute, host)(pixel_values=images, **options).last_hidden_state
    assert tokens.shape[1] == prefix_tokens + 6
    torch.testing.assert_close(level, tokens[:, prefix_tokens:].transpose(1, 2).reshape(2, 32, 2, 3))
    assert not any(name.startswith("body.pooler") for name in teacher.state_dict())
    ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(tmp_path)
    with_processor = feature_teacher(f"hf:{tmp_path}", 16)
    assert (with_processor.vit.mean, with_processor.vit.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert with_processor.info.strides == (16,)


@pytest.mark.parametrize(
    ("name", "prefix_tokens", "norm"),
    [("vit_small_patch14_reg4_dinov2.lvd142m", 5, "norm"), ("eva02_tiny_patch14_224", 1, "fc_norm")],
)
def test_registers_are_dropped_and_the_last_norm_is_applied(
    name: str, prefix_tokens: int, norm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    monkeypatch.setattr(vit, "_published", lambda name: timm.create_model(name, num_classes=0).state_dict())
    teacher, (batch, _) = feature_teacher(f"timm:{name}"), scene()
    assert (teacher.vit.prefix_tokens, teacher.vit.patch_size) == (prefix_tokens, 14)
    (level,) = teacher.observe(batch, need=NECK).pyramids["neck"].levels
    assert level.shape[-2:] == (2, 3)
    # The output of a fresh layer norm has mean 0 and variance 1.
    torch.testing.assert_close(level.mean(1), torch.zeros(2, 2, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(level.var(1, correction=0), torch.ones(2, 2, 3), atol=1e-2, rtol=0)
    assert getattr(teacher.body, norm).weight.shape == (teacher.info.channels["neck"],)


def test_weights_are_loaded_strictly(file: str, tmp_path: Path):
    state = load_file(file)
    for name, change, message in (
        (
            "missing",
            {key: value for key, value in state.items() if key != "blocks.0.attn.qkv.weight"},
            "1 missing, .*qkv.weight' is missing",
        ),
        ("shape", {**state, "pos_embed": torch.zeros(1, 5, 64)}, "1 of another shape, .*'pos_embed' is of another"),
        ("extra", {**state, "neck.weight": torch.zeros(1)}, "1 unexpected .*'neck.weight' is unexpected"),
    ):
        save_file(change, tmp_path / f"{name}.safetensors")
        with pytest.raises(UserError, match=message):
            feature_teacher(f"timm:test_vit={tmp_path / name}.safetensors")
    teacher = feature_teacher(f"timm:test_vit={file}")
    assert all(torch.equal(value, state[name.removeprefix("body.")]) for name, value in teacher.state_dict().items())
    host = write_model("dinov2", tmp_path)
    without_norm = {key: value for key, value in host.state_dict().items() if "layernorm" not in key}
    save_file(without_norm, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"2 missing.*layernorm"):
        feature_teacher(f"hf:{tmp_path}")


def test_models_that_can_not_be_loaded_are_refused(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="timm has no such model; did you mean 'test_vit'"):
        feature_teacher("timm:test_vot")
    for name in ("resnet18", "swin_tiny_patch4_window7_224", "beit_base_patch16_224"):
        with pytest.raises(UserError, match=f"timm:{name}: not a plain ViT"):
            feature_teacher(f"timm:{name}")
    monkeypatch.setattr(state_dicts, "reachable", lambda host: False)
    monkeypatch.setattr(state_dicts, "_is_cached", lambda repository: False)
    with pytest.raises(UserError, match=r"huggingface.co can't be reached; give timm:test_vit=FILE"):
        feature_teacher("timm:test_vit")
    with pytest.raises(UserError, match=r"no config.json of a ViT in this folder \(model_type None\)"):
        feature_teacher(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text('{"model_type": "detr"}')
    with pytest.raises(UserError, match="model_type 'detr'"):
        feature_teacher(f"hf:{tmp_path}")
    with pytest.raises(UserError, match="the stride 0 must be at least 1 pixel"):
        feature_teacher(f"timm:test_vit={file}", 0)


def test_a_vit_without_one_token_per_patch_is_refused(file: str):
    teacher = feature_teacher(f"timm:test_vit={file}")
    with pytest.raises(UserError, match="does not return one token per patch"):
        FeatureTeacher(teacher.body, replace(teacher.vit, prefix_tokens=0))
    body = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0)
    with pytest.raises(UserError, match="images of one size only"):
        FeatureTeacher(body, replace(teacher.vit, width=192))


def test_a_vit_is_read_from_a_file_of_another_training(file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    state = {f"module.backbone.{key}": value for key, value in load_file(file).items()}
    nested = tmp_path / "checkpoint.pth"
    torch.save({"student": {}, "teacher": state, "epoch": 3}, nested)
    teacher, expected = feature_teacher(f"timm:test_vit={nested}"), feature_teacher(f"timm:test_vit={file}")
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in teacher.state_dict().items())
    assert f"timm:test_vit={nested}: stripped the prefix 'module.backbone.'" in caplog.text
