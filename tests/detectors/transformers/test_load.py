"""Loading pretrained detectors of transformers: equal predictions, or an error."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from detdistill import cli
from detdistill.detectors.images import normalize
from detdistill.detectors.registry import host_records
from detdistill.detectors.statistics import IMAGENET
from detdistill.detectors.transformers import load as hub
from detdistill.detectors.weights import load_teacher
from detdistill.errors import UserError
from detdistill.geometry import to_relative
from detdistill.run.models import find
from detdistill.types import Batch, Need, Predictions, Targets

NAMES = ("disc", "square", "star")
SHAPES = ("disc", "square", "star", "cross", "plank", "ladder")
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1] * 4,
    "layer_type": "basic",
}
LAYERS = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 9}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}


def config_of(kind: str, **more: Any) -> Any:
    """The config of a tiny model of this type."""
    single_level = {
        "backbone_config": RESNET | {"out_features": ["stage4"]},
        "use_timm_backbone": False,
        **LAYERS,
        **HEADS,
    }
    multi_level = {"backbone_config": RESNET | {"out_features": ["stage2", "stage3", "stage4"]}, **LAYERS}
    hybrid = {
        "encoder_in_channels": [8, 16, 16],
        "decoder_in_channels": [16, 16, 16],
        "feat_strides": [8, 16, 32],
        "encoder_hidden_dim": 16,
        "num_denoising": 4,
    }
    hybrid |= {"hidden_expansion": 0.5, "d_model": 16, **multi_level, **HEADS}
    if kind in ("detr", "conditional_detr"):
        return getattr(transformers, {"detr": "DetrConfig"}.get(kind, "ConditionalDetrConfig"))(
            **{"d_model": 16, **single_level, **more}
        )
    if kind == "dab-detr":
        return transformers.DabDetrConfig(**{"hidden_size": 16, **single_level, **more})
    if kind == "deformable_detr":
        return transformers.DeformableDetrConfig(
            **{"d_model": 32, "num_feature_levels": 4, "two_stage_num_proposals": 9, **multi_level, **more}
        )
    name = {"rt_detr": "RTDetrConfig", "rt_detr_v2": "RTDetrV2Config", "d_fine": "DFineConfig"}[kind]
    hybrid |= {"depth_mult": 0.34} if kind == "d_fine" else {}
    return getattr(transformers, name)(**hybrid | more)


def save(folder: Path, kind: str, labels: tuple[str, ...] = NAMES, **more: Any) -> Any:
    """Save a model with random weights into `folder`, and return it. Predictions differ by query and class."""
    torch.manual_seed(0)
    config = config_of(kind, id2label=dict(enumerate(labels)), label2id={}, **more)
    model = getattr(transformers, HOSTS[kind].model)(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "class_" in name or "bbox_" in name:
                weight.add_(torch.randn_like(weight) * 0.3)
    with hub.quiet():
        model.save_pretrained(folder)
    return model


def random_images(height: int = 64, width: int = 96) -> Batch:
    """Two random images without padding."""
    pixels = torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    sizes = torch.tensor([[height, width]] * 2)
    return Batch(pixels, sizes, sizes, torch.arange(2), ("a", "b"))


HOSTS = {kind: record.host for kind, record in host_records().items()}
KINDS = [(kind, {}) for kind in HOSTS]
KINDS += [
    ("deformable_detr", {"with_box_refine": True}),
    ("deformable_detr", {"with_box_refine": True, "two_stage": True}),
]
KINDS += [("deformable_detr", {"num_feature_levels": 1, "backbone_config": RESNET | {"out_features": ["stage4"]}})]
STRIDES = {"detr": (32,), "conditional_detr": (32,), "dab-detr": (32,), "deformable_detr": (8, 16, 32, 64)}


@pytest.mark.parametrize(("stored", "used"), [(1, 2), (2, 2), (3, 3)])
def test_the_class_cost_of_deformable_detr_is_the_published_one_unless_its_config_has_its_own(
    stored: int, used: int, tmp_path: Path
):
    """1 is the default of transformers. Published weights were trained with 2, and their configs have the 1, too."""
    save(tmp_path, "deformable_detr", class_cost=stored)
    detector, _ = hub.load(str(tmp_path), NAMES)
    frame, targets = torch.tensor([[100, 100]]), Targets((torch.tensor([[20.0, 20, 60, 60]]),), (torch.tensor([0]),))
    valid = torch.ones(1, 1, dtype=torch.bool)
    stage = Predictions(torch.zeros(1, 1, 1), "sigmoid", targets.boxes[0][None], valid)
    cost = detector.family.matcher.costs([stage], frame, targets).item()
    assert cost == pytest.approx(used * -math.log(2) / 8 - 2, rel=1e-5)  # focal cost of a score of 1/2, and -2 GIoU


@pytest.mark.parametrize(("kind", "more"), KINDS)
def test_predictions_equal_those_of_transformers(kind: str, more: dict[str, Any], tmp_path: Path):
    host = save(tmp_path, kind, **more)
    teacher, report = load_teacher(
        f"hf:{tmp_path}", ("star", "disc", "square")
    )  # the order of the run's classes does not matter
    assert report.complete and report.matched == len(host.state_dict())
    assert teacher.info.classes == NAMES
    assert teacher.info.strides == ((32,) if more.get("num_feature_levels") == 1 else STRIDES.get(kind, (8, 16, 32)))
    batch = random_images()
    normalized = HOSTS[kind].normalized
    with torch.no_grad():
        expected = host(normalize(batch, *IMAGENET) if normalized else batch.images / 255)
        stage = teacher.observe(batch, need=Need(predictions=True)).stages[-1]
    logits = stage.logits
    if stage.background is not None:
        logits = torch.cat([logits, stage.background[..., None]], -1)
    torch.testing.assert_close(logits, expected.logits, rtol=0, atol=2e-5)
    torch.testing.assert_close(to_relative(stage.boxes, batch.sizes), expected.pred_boxes, rtol=0, atol=2e-5)
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.requires_grad for parameter in teacher.backbone_parameters())


def test_strides_of_a_timm_backbone_are_measured(tmp_path: Path):
    backbone = {
        "model_type": "timm_backbone",
        "backbone": "mobilenetv2_035",
        "out_indices": [2, 3, 4],
        "use_pretrained_backbone": False,
    }
    host = save(tmp_path, "deformable_detr", backbone_config=backbone)
    teacher, _ = load_teacher(f"hf:{tmp_path}", NAMES)
    assert teacher.info.strides == (8, 16, 32, 64)
    with torch.no_grad():
        expected = host(normalize(random_images(), *IMAGENET))
        stage = teacher.observe(random_images(), need=Need(predictions=True)).stages[-1]
    torch.testing.assert_close(stage.logits, expected.logits, rtol=0, atol=2e-5)


COLUMNS = ("N/A", "disc", "N/A", "square", "star", "N/A")


@pytest.mark.parametrize("kind", ["conditional_detr", "deformable_detr", "dab-detr", "two_stage"])
def test_unused_columns_of_sigmoids_are_dropped(kind: str, tmp_path: Path):
    more = {"with_box_refine": True, "two_stage": True} if kind == "two_stage" else {}
    host = save(tmp_path, "deformable_detr" if more else kind, COLUMNS, **more)
    teacher, _ = load_teacher(f"hf:{tmp_path}", NAMES)
    assert teacher.info.classes == NAMES
    batch = random_images()
    with torch.no_grad():
        expected = host(normalize(batch, *IMAGENET))
        stage = teacher.observe(batch, need=Need(predictions=True)).stages[-1]
    torch.testing.assert_close(stage.logits, expected.logits[..., [1, 3, 4]], rtol=0, atol=2e-5)
    # The proposals are the same.
    torch.testing.assert_close(to_relative(stage.boxes, batch.sizes), expected.pred_boxes, rtol=0, atol=2e-5)
    assert_learns(teacher, batch)


def test_unused_columns_of_a_softmax_count_as_no_object(tmp_path: Path):
    host = save(tmp_path, "detr", COLUMNS)
    teacher, _ = load_teacher(f"hf:{tmp_path}", NAMES)
    batch = random_images()
    with torch.no_grad():
        expected = host(normalize(batch, *IMAGENET)).logits.softmax(-1)
        stage = teacher.observe(batch, need=Need(predictions=True)).stages[-1]
    torch.testing.assert_close(stage.scores(), expected[..., [1, 3, 4]], rtol=0, atol=1e-6)
    assert expected[..., [0, 2, 5]].sum(-1).min() > 0.05  # large enough to change the scores if they were dropped
    assert_learns(teacher, batch)


def assert_learns(teacher: Any, batch: Batch) -> None:
    """Losses and gradients are finite. Labels of the targets count the kept classes only."""
    targets = Targets(
        (torch.tensor([[4.0, 6.0, 40.0, 50.0]]), torch.tensor([[10.0, 10.0, 60.0, 40.0]])),
        (torch.tensor([2]), torch.tensor([0])),
    )
    loss = sum(teacher.observe(batch, targets).losses.values())
    loss.backward()
    assert loss.isfinite()


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the saved weights."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_every_tensor_must_fit(tmp_path: Path):
    save(tmp_path, "deformable_detr")
    name = "model.level_embed"
    value = load_file(tmp_path / "model.safetensors")[name]
    for change, message in (
        (lambda state: state.pop(name), f"0 of another shape, 1 missing, 0 unexpected; the first missing is '{name}'"),
        (
            lambda state: state.update({name: torch.zeros(3, 5)}),
            f"1 of another shape, 0 missing, 0 unexpected; the first of another shape is '{name}'",
        ),
        (
            lambda state: state.update({name: value, "stray": torch.zeros(1)}),
            "0 missing, 1 unexpected; the first unexpected is 'stray'",
        ),
    ):
        edit(tmp_path, change)
        with pytest.raises(UserError, match=message) as error:
            load_teacher(f"hf:{tmp_path}", NAMES)
        assert "\n" not in str(error.value)


def write_config(folder: Path, **changes: Any) -> None:
    """Change fields of the saved config."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_errors_of_models_that_can_not_be_loaded_have_one_line(tmp_path: Path):
    def refused(path: Path | str, message: str) -> None:
        with pytest.raises(UserError, match=message) as error:
            load_teacher(f"hf:{path}", NAMES)
        assert "\n" not in str(error.value)

    refused(tmp_path, "no config.json")
    (tmp_path / "model.json").write_text("{}")
    refused(tmp_path, "without hf:")
    refused(tmp_path / "nowhere", "no such folder")
    refused("", "no such folder")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "can't be loaded")
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    refused(tmp_path, "type 'resnet' is not supported; choose a detector of type .*deformable_detr")
    save(tmp_path, "detr")
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, "can't be loaded .*safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    refused(tmp_path, "can't be loaded")
    write_config(tmp_path, auxiliary_loss=True)
    refused(tmp_path, "auxiliary_loss")
    save(tmp_path, "detr", ("disc", "disc", "star"))
    refused(tmp_path, "'disc' more than once")
    (tmp_path / "model.json").unlink()
    with pytest.raises(UserError, match=f"give hf:{tmp_path}"):
        find(str(tmp_path), NAMES)


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        ("detr", {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}),
        ("detr", {"do_normalize": False}),
        ("rt_detr", {"do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 1.0]}),
        ("rt_detr", {"do_rescale": False}),
        (
            "rt_detr",
            {"rescale_factor": 1 / 127.5, "do_normalize": True, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
        ),
    ],
)
def test_pixels_are_prepared_as_by_the_stored_processor(kind: str, stored: dict[str, Any], tmp_path: Path):
    host = save(tmp_path, kind)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored))
    teacher, _ = load_teacher(f"hf:{tmp_path}", NAMES)
    processor = getattr(transformers, HOSTS[kind].processor)(do_resize=False, do_pad=False, **stored)
    batch = random_images()
    with torch.no_grad():
        expected = host(processor(list(batch.images), return_tensors="pt")["pixel_values"].float()).logits
        stage = teacher.observe(batch, need=Need(predictions=True)).stages[-1]
    torch.testing.assert_close(stage.logits, expected[..., : len(NAMES)], rtol=0, atol=2e-4)


@pytest.mark.parametrize("stored", [{"image_std": [0, 1, 1]}, {"image_mean": [0.5]}, {"rescale_factor": 0}])
def test_a_processor_that_cannot_be_used_is_refused(stored: dict[str, Any], tmp_path: Path):
    save(tmp_path, "detr")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"^hf:.* in its preprocessor_config.json can't be used; write three means"):
        load_teacher(f"hf:{tmp_path}", NAMES)


def test_unsupported_gaps_and_broken_labels_are_refused(tmp_path: Path):
    save(tmp_path, "rt_detr", COLUMNS)
    with pytest.raises(UserError, match="'N/A' are not supported for rt_detr"):
        load_teacher(f"hf:{tmp_path}", NAMES)
    write_config(tmp_path, id2label={"1": "disc", "2": "star"})
    with pytest.raises(UserError, match="from 0"):
        load_teacher(f"hf:{tmp_path}", NAMES)


def test_without_network_the_error_comes_at_once(monkeypatch: pytest.MonkeyPatch):
    hosts: list[str] = []
    monkeypatch.setattr(hub, "reachable", lambda name: hosts.append(name) or False)
    monkeypatch.setattr(
        transformers.AutoConfig, "from_pretrained", lambda *args, **keywords: pytest.fail("the hub client was called")
    )
    with pytest.raises(
        UserError, match=r"hf:nobody/nothing: no such folder, not in the hub's cache .*can't be reached"
    ):
        load_teacher("hf:nobody/nothing", NAMES)
    assert hosts == ["huggingface.co"]


def test_a_cached_model_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, "deformable_detr")
    monkeypatch.setattr(hub, "reachable", lambda name: pytest.fail("the network was used"))
    monkeypatch.setattr(
        hub, "try_to_load_from_cache", lambda name, file: str(tmp_path / file) if (tmp_path / file).exists() else None
    )
    assert hub._is_local("nobody/cached") is True


def test_unnamed_labels_get_the_names_of_the_data(tmp_path: Path):
    save(tmp_path, "conditional_detr", ("LABEL_0", "LABEL_1", "LABEL_2"))
    assert load_teacher(f"hf:{tmp_path}", ("a", "b", "c"))[0].info.classes == ("a", "b", "c")
    assert load_teacher(f"hf:{tmp_path}", ("a", "b"))[0].info.classes == ("LABEL_0", "LABEL_1", "LABEL_2")
    save(tmp_path, "conditional_detr", ("sofa", "tvmonitor", "person"))
    assert load_teacher(f"hf:{tmp_path}", ("person", "couch", "tv"))[0].info.classes == ("couch", "tv", "person")
    assert load_teacher(f"hf:{tmp_path}", ("person", "sofa"))[0].info.classes == ("sofa", "tvmonitor", "person")


def test_it_teaches_and_is_evaluated_and_predicts(tmp_path: Path, capsys: pytest.CaptureFixture):
    from PIL import Image

    save(tmp_path / "host", "deformable_detr", SHAPES[::-1])
    common = ["--data", "shapes:8", "--image-size", "128", "--batch-size", "4", "--device", "cpu"]
    student = [
        "--model.strides",
        "8,16,32",
        "--model.channels",
        "16",
        "--model.tower-depth",
        "1",
        "--backbone-weights",
        "none",
    ]
    model = f"hf:{tmp_path / 'host'}"
    pair = ["--student", "gfl:mobilenetv3_small_050", "--teacher", model, "--method", "pkd", "--max-steps", "1"]
    assert cli.main(["distill", *pair, *common, *student, "--out", str(tmp_path / "student")]) == 0
    assert "tensors matched, 0 missing" in capsys.readouterr().out
    assert cli.main(["evaluate", "--model", model, *common, "--out", str(tmp_path / "scores")]) == 0
    assert set(json.loads((tmp_path / "scores/metrics.json").read_text())["per_class"]) == set(SHAPES)
    Image.effect_noise((96, 64), 80).save(tmp_path / "one.jpg")
    arguments = [
        "predict",
        str(tmp_path / "one.jpg"),
        "--model",
        model,
        "--image-size",
        "128",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "drawn"),
    ]
    assert cli.main(arguments) == 0
    assert json.loads((tmp_path / "drawn/predictions.json").read_text())
    assert cli.main(["train", "--model", model, *common]) == 2
    assert "is already trained and can only teach" in capsys.readouterr().err
