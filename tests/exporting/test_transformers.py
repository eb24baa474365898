"""An export is loaded by plain transformers, in a process of its own, and answers as the run does."""

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
from detdistill.detectors.queries.frames import to_relative
from detdistill.detectors.transformers import plain
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.run.folder import Card, RunFolder
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
folder, pixels, answers = sys.argv[1:]
model = AutoModelForObjectDetection.from_pretrained(folder)
processor = AutoImageProcessor.from_pretrained(folder)
with torch.no_grad():
    output = model(load_file(pixels)["pixels"])
shown = processor(Image.effect_noise((200, 120), 80).convert("RGB"), return_tensors="pt")["pixel_values"]
save_file({"logits": output.logits, "boxes": output.pred_boxes, "shown": shown}, answers)
assert "detdistill" not in sys.modules
"""


def run_of(folder: Path, name: str, **more: Any) -> Detector:
    """A run folder as `train` leaves it, of random weights that tell queries and classes apart."""
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
        for path, value in detector.named_buffers():  # statistics as if it had been trained
            if path.endswith(("running_mean", "running_var")):
                value.add_(torch.rand_like(value) * 0.3)
    folder.mkdir()
    RunFolder(folder).save(detector, Card(model=config, classes=NAMES, category_ids=(3, 5, 9), image_size=SIZE))
    return detector.eval()


def answers(detector: Detector) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    pixels = torch.randint(0, 256, (2, 3, 96, 96), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    sizes = torch.tensor([[96, 96]] * 2)
    batch = Batch(pixels, sizes, sizes, torch.arange(2), ("a", "b"))
    with torch.no_grad():
        stage = detector.observe(batch, need=Need(predictions=True)).stages[-1]
    logits = stage.logits if stage.background is None else torch.cat([stage.logits, stage.background[..., None]], -1)
    return batch, logits, to_relative(stage.boxes, sizes)


def test_a_fresh_process_without_us_gives_the_same_numbers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    detector, out = run_of(tmp_path / "run", "deformable_detr:resnet18"), tmp_path / "deep/host"
    assert cli.main(["export", "--model", str(tmp_path / "run"), "--format", "transformers", "--out", str(out)]) == 0
    assert "answers as" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == FILES
    batch, logits, boxes = answers(detector)
    save_file({"pixels": normalize(batch)}, tmp_path / "pixels.safetensors")
    found = tmp_path / "answers.safetensors"
    code = [sys.executable, "-c", READER, str(out), str(tmp_path / "pixels.safetensors"), str(found)]
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "UNEXPECTED" not in done.stderr and "MISSING" not in done.stderr
    theirs = load_file(found)
    torch.testing.assert_close(theirs["logits"], logits, rtol=0, atol=2e-5)
    torch.testing.assert_close(theirs["boxes"], boxes, rtol=0, atol=2e-5)
    assert theirs["shown"].shape == (1, 3, 57, 96)  # 120 x 200 fitted into 70 x 96
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
def test_every_family_goes_out_and_comes_back(name: str, more: dict[str, Any], tmp_path: Path) -> None:
    detector, out = run_of(tmp_path / "run", name, **more), tmp_path / "host"
    assert dd.export(tmp_path / "run", out) == out
    back, _ = find(f"hf:{out}", ())
    assert back.info.classes == NAMES
    assert back.info.strides == detector.info.strides
    mine, theirs = answers(detector)[1:], answers(back)[1:]
    for ours, others in zip(mine, theirs, strict=True):
        torch.testing.assert_close(others, ours, rtol=0, atol=1e-4)
    told = json.loads((out / "preprocessor_config.json").read_text())
    if detector.info.kind in STRIDES:  # they know padding
        assert told["size"] == {"max_height": 70, "max_width": 96}
        assert told["do_normalize"] and told["do_pad"]
    else:
        assert told["size"] == {"height": 96, "width": 96}
        assert not told["do_normalize"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("deformable_detr:mobilenetv2_035", ["mobilenetv2_035", "otherwise", "ResNets"]),
        ("gfl:mobilenetv2_035", ["gfl is no detector of transformers"]),
    ],
)
def test_what_plain_transformers_would_make_otherwise_is_refused(
    name: str, told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run_of(tmp_path / "run", name)
    assert cli.main(["export", "--model", str(tmp_path / "run"), "--out", str(tmp_path / "host")]) == 2
    heard = capsys.readouterr().err
    assert heard.count("\n") == 1
    assert [part for part in told if part not in heard] == [], heard
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_backbone_of_other_tensors_is_refused(tmp_path: Path) -> None:
    detector: Any = run_of(tmp_path / "run", "deformable_detr:resnet18")
    detector.model.model.backbone.model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"2 tensors have other names .* 'model.backbone.model.extra.bias'"):
        plain.write(detector, tmp_path, SIZE)


def test_pictures_normalised_otherwise_are_seen(tmp_path: Path) -> None:
    detector = run_of(tmp_path / "run", "deformable_detr:resnet18")
    out = tmp_path / "host"
    out.mkdir()
    plain.write(detector, out, SIZE)
    plain.verify(detector, out, SIZE)
    told = json.loads((out / "preprocessor_config.json").read_text())
    (out / "preprocessor_config.json").write_text(json.dumps(told | {"image_std": [0.3, 0.3, 0.3]}))
    with pytest.raises(UserError, match="image processor makes other pixels"):
        plain.verify(detector, out, SIZE)


def test_more_queries_than_cells_are_refused_with_their_number(tmp_path: Path) -> None:
    run_of(tmp_path / "run", "rt_detr:mobilenetv2_035", queries=200)  # 144 + 36 + 9 cells of 96 x 96
    with pytest.raises(UserError, match=r"200 queries among the 189 cells of images of 96 x 96.*--model\.queries 189"):
        dd.export(tmp_path / "run", tmp_path / "host")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_labels_that_are_others_are_seen(tmp_path: Path) -> None:
    detector, out = run_of(tmp_path / "run", "deformable_detr:resnet18"), tmp_path / "host"
    out.mkdir()
    plain.write(detector, out, SIZE)
    told = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(told | {"id2label": {"0": "disc", "1": "star", "2": "square"}}))
    with pytest.raises(UserError, match=r"its labels are \['disc', 'star', 'square'\]"):
        plain.verify(detector, out, SIZE)


def test_a_disk_that_fails_half_way_leaves_no_folder_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_of(tmp_path / "run", "deformable_detr:resnet18")
    out = dd.export(tmp_path / "run", tmp_path / "host")

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("detdistill.exporting.transformers.os.replace", full)
    with pytest.raises(UserError, match=r"host: can't be written \(No space left on device\)"):
        dd.export(tmp_path / "run", out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == [name for name in FILES if name != "config.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["host", "run"]


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
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
    with pytest.raises(UserError, match="--format 'onnx'"):
        dd.export(tmp_path / "run", tmp_path / "other", format="onnx")
    dd.export(tmp_path / "run", out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "notes.txt"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["host", "run"]
