"""Exported detectors are loaded by transformers alone and give the same predictions."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import detdistill as dd
from detdistill import cli
from detdistill.detectors.build import build
from detdistill.detectors.images import normalize
from detdistill.detectors.statistics import IMAGENET
from detdistill.detectors.transformers import export
from detdistill.errors import UserError
from detdistill.geometry import to_relative
from detdistill.recipe import ModelConfig
from detdistill.run.folder import ModelCard, RunFolder
from detdistill.run.models import find
from detdistill.types import Batch, Detector, Need

NAMES = ("disc", "square", "star")
SIZE = (70, 96)  # padded to 96 x 96
STRIDES = {"detr": (32,), "conditional_detr": (32,), "dab_detr": (32,), "deformable_detr": (8, 16, 32, 64)}
FILES = ["config.json", "model.safetensors", "preprocessor_config.json"]
READER = """
import sys, torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForObjectDetection
folder, pixels, predictions = sys.argv[1:]
model = AutoModelForObjectDetection.from_pretrained(folder)
processor = AutoImageProcessor.from_pretrained(folder)
with torch.no_grad():
    output = model(load_file(pixels)["pixels"])
processed = processor(Image.effect_noise((200, 120), 80).convert("RGB"), return_tensors="pt")["pixel_values"]
save_file({"logits": output.logits, "boxes": output.pred_boxes, "processed": processed}, predictions)
assert "detdistill" not in sys.modules
"""


def run_of(folder: Path, name: str, **more: Any) -> Detector:
    """Write a run folder as `train` does, and return its detector. Predictions differ by query and class."""
    torch.manual_seed(0)
    head = name.partition(":")[0]
    small = {
        "strides": STRIDES.get(head, (8, 16, 32)),
        "channels": 32,
        "queries": 9,
        "tower_depth": 1,
        "backbone_weights": "none",
    }
    small |= {"encoder_layers": 1, "decoder_layers": 2} if head != "gfl" else {}
    config = ModelConfig.model_validate({"name": name} | small | more)
    detector: Any = build(config, NAMES)
    with torch.no_grad():
        for path, weight in detector.named_parameters():
            if "class_" in path or "bbox_" in path:
                weight.add_(torch.randn_like(weight) * 0.3)
        for path, value in detector.named_buffers():  # statistics as after training
            if path.endswith(("running_mean", "running_var")):
                value.add_(torch.rand_like(value) * 0.3)
    folder.mkdir()
    RunFolder(folder).save(detector, ModelCard(model=config, classes=NAMES, category_ids=(3, 5, 9), image_size=SIZE))
    return detector.eval()


def predict(detector: Detector) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """A random batch, and the detector's logits and relative boxes for it."""
    pixels = torch.randint(0, 256, (2, 3, 96, 96), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    sizes = torch.tensor([[96, 96]] * 2)
    batch = Batch(pixels, sizes, sizes, torch.arange(2), ("a", "b"))
    with torch.no_grad():
        stage = detector.observe(batch, need=Need(predictions=True)).stages[-1]
    logits = stage.logits if stage.background is None else torch.cat([stage.logits, stage.background[..., None]], -1)
    return batch, logits, to_relative(stage.boxes, sizes)


def test_a_new_process_without_this_package_gives_the_same_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    detector, out = run_of(tmp_path / "run", "deformable_detr:resnet18"), tmp_path / "deep/host"
    assert cli.main(["export", "--model", str(tmp_path / "run"), "--format", "transformers", "--out", str(out)]) == 0
    assert "its boxes equal those of" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == FILES
    batch, logits, boxes = predict(detector)
    save_file({"pixels": normalize(batch, *IMAGENET)}, tmp_path / "pixels.safetensors")
    predictions = tmp_path / "predictions.safetensors"
    command = [sys.executable, "-c", READER, str(out), str(tmp_path / "pixels.safetensors"), str(predictions)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    assert "UNEXPECTED" not in process.stderr and "MISSING" not in process.stderr
    exported = load_file(predictions)
    torch.testing.assert_close(exported["logits"], logits, rtol=0, atol=2e-5)
    torch.testing.assert_close(exported["boxes"], boxes, rtol=0, atol=2e-5)
    assert exported["processed"].shape == (1, 3, 57, 96)  # 120 x 200 resized to fit into 70 x 96
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {str(column): name for column, name in enumerate(NAMES)}
    assert config["label2id"] == {name: column for column, name in enumerate(NAMES)}
    assert (config["dtype"], config["backbone_config"]["use_pretrained_backbone"]) == ("float32", False)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("detr:resnet18", {}),
        ("conditional_detr:resnet18", {}),
        ("dab_detr:resnet18", {}),
        ("deformable_detr:resnet18", {"box_refine": True}),
        ("deformable_detr:resnet18", {"two_stage": True}),
        ("rt_detr:resnet18", {}),
        ("rt_detr:mobilenetv2_035", {}),
        ("rt_detr_v2:mobilenetv2_035", {}),
        ("d_fine:resnet18", {}),
    ],
)
def test_every_family_is_exported_and_loaded_again(name: str, more: dict[str, Any], tmp_path: Path) -> None:
    detector, out = run_of(tmp_path / "run", name, **more), tmp_path / "host"
    assert dd.export(tmp_path / "run", out) == out
    loaded, _ = find(f"hf:{out}", ())
    assert loaded.info.classes == NAMES
    assert loaded.info.strides == detector.info.strides
    _, logits, boxes = predict(detector)
    _, loaded_logits, loaded_boxes = predict(loaded)
    torch.testing.assert_close(loaded_logits, logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(loaded_boxes, boxes, rtol=0, atol=1e-4)
    processor = json.loads((out / "preprocessor_config.json").read_text())
    if detector.info.kind in STRIDES:  # these families use the padding mask
        assert processor["size"] == {"max_height": 70, "max_width": 96}
        assert processor["do_normalize"] and processor["do_pad"]
    else:
        assert processor["size"] == {"height": 96, "width": 96}
        assert processor["do_normalize"] and not processor["do_pad"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("deformable_detr:mobilenetv2_035", ["mobilenetv2_035", "predictions for the same image differ", "ResNet"]),
        ("gfl:mobilenetv2_035", ["gfl is not a detector of transformers"]),
    ],
)
def test_a_detector_that_transformers_builds_differently_is_refused(
    name: str, parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run_of(tmp_path / "run", name)
    assert cli.main(["export", "--model", str(tmp_path / "run"), "--out", str(tmp_path / "host")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert [part for part in parts if part not in message] == [], message
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_backbone_with_other_tensors_is_refused(tmp_path: Path) -> None:
    detector: Any = run_of(tmp_path / "run", "deformable_detr:resnet18")
    detector.model.model.backbone.model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"2 tensors have other names .* 'model.backbone.model.extra.bias'"):
        export.write(detector, tmp_path, SIZE)


def test_a_different_image_processor_is_refused(tmp_path: Path) -> None:
    detector = run_of(tmp_path / "run", "deformable_detr:resnet18")
    out = tmp_path / "host"
    out.mkdir()
    export.write(detector, out, SIZE)
    export.verify(detector, out, SIZE)
    stored = json.loads((out / "preprocessor_config.json").read_text())
    (out / "preprocessor_config.json").write_text(json.dumps(stored | {"image_std": [0.3, 0.3, 0.3]}))
    with pytest.raises(UserError, match="image processor gives other pixels"):
        export.verify(detector, out, SIZE)


def test_more_queries_than_cells_are_refused(tmp_path: Path) -> None:
    run_of(tmp_path / "run", "rt_detr:mobilenetv2_035", queries=200)  # 144 + 36 + 9 cells of 96 x 96
    with pytest.raises(UserError, match=r"200 queries among the 189 cells of images of 96 x 96.*--model\.queries 189"):
        dd.export(tmp_path / "run", tmp_path / "host")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_different_labels_are_refused(tmp_path: Path) -> None:
    detector, out = run_of(tmp_path / "run", "deformable_detr:resnet18"), tmp_path / "host"
    out.mkdir()
    export.write(detector, out, SIZE)
    stored = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(stored | {"id2label": {"0": "disc", "1": "star", "2": "square"}}))
    with pytest.raises(UserError, match=r"its labels are \['disc', 'star', 'square'\]"):
        export.verify(detector, out, SIZE)


def test_a_full_disk_leaves_no_folder_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_of(tmp_path / "run", "deformable_detr:resnet18")
    out = dd.export(tmp_path / "run", tmp_path / "host")

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("detdistill.exporting.transformers.os.replace", full)
    with pytest.raises(UserError, match=r"host: can't be written \(No space left on device\)"):
        dd.export(tmp_path / "run", out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == [name for name in FILES if name != "config.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["host", "run"]


def test_a_folder_with_other_files_is_not_overwritten(tmp_path: Path) -> None:
    run_of(tmp_path / "run", "deformable_detr:resnet18")
    out = tmp_path / "host"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        dd.export(tmp_path / "run", out)
    with pytest.raises(UserError, match="is a run folder"):
        dd.export(tmp_path / "run", tmp_path / "run", overwrite=True)
    with pytest.raises(UserError, match=r"no model\.json"):
        dd.export(out, tmp_path / "other")
    with pytest.raises(UserError, match="--format 'tflite'"):
        dd.export(tmp_path / "run", tmp_path / "other", format="tflite")
    dd.export(tmp_path / "run", out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "notes.txt"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["host", "run"]
