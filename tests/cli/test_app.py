"""The command line: what a person types, and what comes back. Tiny detectors, two steps."""

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

import detdistill as dd
from detdistill import cli
from detdistill.cli import flags
from detdistill.cli.listing import heads_in_words, listing
from detdistill.methods import METHODS, by_group
from detdistill.run.folder import FILES
from detdistill.run.pairing import served

MODEL = "gfl:mobilenetv3_small_050"
SHAPE = [
    "--model.strides",
    "8,16,32",
    "--model.channels",
    "32",
    "--model.tower-depth",
    "2",
    "--backbone-weights",
    "none",
]
TINY = ["--data", "shapes:8", "--image-size", "64", "--batch-size", "4", "--device", "cpu", *SHAPE]
NUMBERS = {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "per_class"}
COSTS = {"params", "flops", "latency_ms", "train_seconds", "images_per_second"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, two steps old."""
    out = tmp_path_factory.mktemp("runs") / "teacher"
    assert cli.main(["train", "--model", MODEL, *TINY, "--max-steps", "2", "--out", str(out)]) == 0
    return out


def distill(teacher: Path, out: Path, *more: str) -> int:
    pair = ["--student", MODEL, "--teacher", str(teacher), "--method", "pkd,crosskd"]
    return cli.main(["distill", *pair, *TINY, "--out", str(out), *more])


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_parsing_waits_for_nothing_heavy() -> None:
    code = "import sys, detdistill, detdistill.cli, detdistill.recipe; assert not {'torch', 'torchvision', 'timm'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "detdistill", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert all(
        command in done.stdout for command in ("demo", "train", "distill", "evaluate", "predict", "export", "list")
    )
    wrong = subprocess.run(
        [sys.executable, "-m", "detdistill", "train", "--epcohs", "3"], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert wrong.stderr == "detdistill: Unknown option: --epcohs. Did you mean --epochs?\n"


def test_every_common_flag_of_the_surface_is_there(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # long names are not broken
    assert cli.main(["distill", "--help"]) == 0
    told = capsys.readouterr().out
    common = "recipe epochs seed out batch-size image-size lr workers device precision max-steps resume overwrite backbone-weights on-bad-record"
    assert [name for name in common.split() if f"--{name} " not in told] == []
    assert [path for path in flags.FIELDS if f"--{path.replace('_', '-')}" not in told] == []


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("trian", ["trian", '"train"']),
        ("train --model gfl:resnet18 --data shapes:8 --lr", ["--lr"]),
        ("train --model gfl:resnet18 --data shapes:8 --epochs none", ["train.epochs"]),
        ("train --model gfl:resnet18 --data shapes:8 --train.warmup_step 3", ["--train.warmup-steps"]),
        ("train --data shapes:8", ["--model"]),
        ("train --model retinnet:resnet18 --data shapes:8 --backbone-weights none", ["'retinnet'", "'retinanet'"]),
        ("train --model gfl --data shapes:8 --backbone-weights none", ["HEAD:BACKBONE"]),
        (
            "train --model torchvision:fcos_resnet50_fpn --data shapes:8",
            ["torchvision:fcos_resnet50_fpn", "HEAD:BACKBONE"],
        ),
        ("train --model gfl:resnet18 --data nowhere", ["nowhere", "no such folder"]),
        ("train --model gfl:resnet18 --data shapes:many --backbone-weights none", ["shapes"]),
        ("train --model gfl:resnet18 --data shapes:8 --device tpu --backbone-weights none", ["--device tpu"]),
        ("train --model gfl:resnet18 --data shapes:8 --device cpu --precision fp16", ["--precision fp16"]),
        ("train --model gfl:resnet18 --data shapes:8 --recipe nowhere.yaml", ["nowhere.yaml", "demo"]),
        ("train --model gfl:resnet18 --data shapes:8 --resume", ["--resume needs --out"]),
        ("train --model gfl:resnet18 --data shapes:8 --resume --out nowhere", ["nowhere", "--resume"]),
        ("train --model gfl:resnet18 --data shapes:8 --resume --overwrite --out a", ["--resume", "--overwrite"]),
        ("distill --student gfl:resnet18 --data shapes:8 --teacher x", ["--method"]),
        ("distill --student gfl:resnet18 --data shapes:8 --teacher x --method pkdd", ["'pkdd'", "'pkd'"]),
        ("distill --student gfl:resnet18 --data shapes:8 --teacher x --method pkd,", ["'pkd,'"]),
        (
            "distill --student gfl:resnet18 --data shapes:8 --method pkd --methods.pkd.wieght 3",
            ["'wieght'", "'weight'"],
        ),
        (
            "distill --student gfl:resnet18 --data shapes:8 --method pkd --methods.pkd.weight heavy",
            ["methods.pkd.weight", "'heavy'"],
        ),
        (
            "distill --student gfl:resnet18 --data shapes:8 --method pkd --methods.crosskd.align false",
            ["--methods.crosskd", "--method"],
        ),
        ("distill --student gfl:resnet18 --data shapes:8 --method pkd", ["no teacher", "--teacher"]),
        ("distill --student gfl:resnet18 --data shapes:8 --method pkd --teacher nowhere", ["nowhere", "run folder"]),
        ("compare --student gfl:resnet18 --data shapes:8 --teacher x", ["--methods", "none,pkd"]),
        ("compare --student gfl:resnet18 --data shapes:8 --teacher x --methods pkd+,kd", ["'pkd+'"]),
        ("compare --student gfl:resnet18 --data shapes:8 --teacher x --methods pkd+none", ["'pkd+none'", "alone"]),
        ("compare --student gfl:resnet18 --data shapes:8 --teacher x --methods pkd+pkd", ["'pkd+pkd'", "different"]),
        ("compare --student gfl:resnet18 --data shapes:8 --teacher x --methods pkd --resamples 0", ["--resamples 0"]),
        (
            "compare --student gfl:resnet18 --data shapes:8 --teacher x --methods pkd --methods.kd.weight 2",
            ["--methods.kd", "add kd"],
        ),
        ("compare --student gfl:resnet18 --data shapes:8 --methods pkd --backbone-weights none", ["no teacher"]),
        ("evaluate --model nowhere --data shapes:8", ["nowhere", "run folder"]),
        ("evaluate --model x", ["--data"]),
        ("predict --model x --out y", ["no picture"]),
        (
            "train --model hf:nobody/detr --data shapes:8",
            ["hf:nobody/detr", "is trained already, and can teach", "HEAD:BACKBONE"],
        ),
        ("evaluate --model hf:./nowhere --data shapes:8", ["hf:./nowhere", "no such folder"]),
        ("export --model nowhere --out y", ["nowhere", "not a run folder"]),
        ("export --model nowhere --out y --format onnx", ["onnx", "transformers"]),
        ("predict nothing.png --model x --out y", ["nothing.png"]),
        ("list models", ["models", "methods"]),
    ],
)
def test_wrong_input_is_one_line_and_2(
    typed: str, told: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(typed.split()) == 2
    heard = capsys.readouterr().err
    assert heard.startswith("detdistill: ")
    assert heard.count("\n") == 1
    assert [part for part in told if part not in heard] == [], heard
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from detdistill import run

    def stop(*arguments: Any, **keywords: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", stop)
    assert cli.main(["train"]) == 1
    assert "--resume" in capsys.readouterr().err


def test_what_is_no_fault_of_the_user_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from detdistill import run

    def fail(*arguments: Any, **keywords: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(run, "train", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train"])


def test_a_run_folder_has_what_the_design_says(teacher: Path) -> None:
    assert set(FILES) - {"predictions.json"} <= {path.name for path in teacher.iterdir()}
    assert (teacher / "checkpoint").is_dir()
    metrics = read(teacher / "metrics.json")
    assert metrics.keys() >= NUMBERS | COSTS
    assert set(metrics["per_class"]) == set(read(teacher / "model.json")["classes"])
    assert read(teacher / "environment.json")["versions"]["torch"]
    assert [path.name for path in teacher.iterdir() if path.name.startswith(".")] == []  # nothing half written


def test_a_resolved_recipe_runs_again_as_it_is(teacher: Path, tmp_path: Path) -> None:
    assert cli.main(["train", "--recipe", str(teacher / "recipe.yaml"), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again/model.safetensors").read_bytes() == (teacher / "model.safetensors").read_bytes()
    assert (tmp_path / "again/recipe.yaml").read_text() == (teacher / "recipe.yaml").read_text()


def test_resume_ends_where_the_whole_run_ends(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert distill(teacher, whole, "--teacher.allow-weak", "--max-steps=3") == 0
    assert distill(teacher, parts, "--teacher.allow-weak", "--max-steps=1") == 0
    assert cli.main(["distill", "--resume", "--out", str(parts), "--max-steps", "3"]) == 0
    for name in ("model.safetensors", "recipe.yaml"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    assert read(whole / "metrics.json")["AP"] == read(parts / "metrics.json")["AP"]
    written = (parts / "model.safetensors").stat().st_mtime_ns
    assert cli.main(["distill", "--resume", "--out", str(parts)]) == 0
    assert "finished" in capsys.readouterr().out
    assert (parts / "model.safetensors").stat().st_mtime_ns == written
    assert cli.main(["distill", "--resume", "--out", str(parts), "--max-steps", "4", "--lr", "0.5"]) == 2
    assert "train.lr" in capsys.readouterr().err


def test_a_folder_in_use_is_left_alone(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = (teacher / "metrics.json").read_bytes()
    assert cli.main(["train", "--model", MODEL, *TINY, "--out", str(teacher)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    (tmp_path / "thesis.txt").write_text("precious")
    assert cli.main(["train", "--model", MODEL, *TINY, "--out", str(tmp_path), "--overwrite"]) == 2
    assert "not a run folder" in capsys.readouterr().err
    assert distill(teacher, teacher, "--overwrite", "--teacher.allow-weak") == 2
    assert "the model it reads" in capsys.readouterr().err
    assert (teacher / "metrics.json").read_bytes() == before
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_overwrite_replaces_the_run_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for seed in ("0", "1"):
        assert (
            cli.main(
                ["train", "--model", MODEL, *TINY, "--max-steps", "1", "--seed", seed, "--out", str(out), "--overwrite"]
            )
            == 0
        )
        (out / "notes.txt").write_text("mine")
    assert "seed: 1" in (out / "recipe.yaml").read_text()
    assert (out / "notes.txt").exists()
    assert len((out / "log.jsonl").read_text().splitlines()) == 1


def test_default_folders_are_numbered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert cli.main(["train", "--model", MODEL, *TINY, "--max-steps", "1"]) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "gfl-mobilenetv3_small_050",
        "gfl-mobilenetv3_small_050-2",
    ]


def test_evaluate_writes_only_where_it_is_told(
    teacher: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["evaluate", "--model", str(teacher), "--data", "shapes:8", "--device", "cpu"]
    assert cli.main(typed) == 0
    told = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert all(name in told for name in ("AP50", "AR100", "ladder", "test split", "GFLOPs"))
    assert cli.main([*typed, "--split", "val", "--out", "found"]) == 0
    assert "val split" in capsys.readouterr().out
    assert read(tmp_path / "found/metrics.json").keys() >= NUMBERS
    assert (tmp_path / "found/predictions.json").exists()


def test_the_last_weights_are_those_that_were_measured(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "found"
    assert (
        cli.main(["evaluate", "--model", str(teacher), "--data", "shapes:8", "--device", "cpu", "--out", str(out)]) == 0
    )
    then, now = read(teacher / "metrics.json"), read(out / "metrics.json")
    assert {name: now[name] for name in NUMBERS | {"params", "flops"}} == {
        name: then[name] for name in NUMBERS | {"params", "flops"}
    }


def test_predict_speaks_of_the_pictures_own_pixels(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "pics/below").mkdir(parents=True)
    Image.new("RGB", (200, 50), "red").save(tmp_path / "pics/a.jpg")
    Image.effect_noise((90, 300), 80).save(tmp_path / "pics/below/a.jpg")
    Image.effect_noise((120, 120), 80).save(tmp_path / "b.bmp")
    out = tmp_path / "out"
    typed = [
        "predict",
        str(tmp_path / "pics"),
        str(tmp_path / "b.bmp"),
        "--model",
        str(teacher),
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    assert cli.main(typed) == 0
    found = read(out / "predictions.json")
    assert sorted(path.name for path in out.iterdir()) == ["1-a.jpg", "2-a.jpg", "b.bmp.png", "predictions.json"]
    sizes = {1: (200, 50), 2: (90, 300), 3: (120, 120)}
    assert found
    for one in found:
        assert one.keys() == {"image_id", "file_name", "category_id", "bbox", "score"}
        assert 1 <= one["category_id"] <= 6
        x, y, width, height = one["bbox"]
        assert x >= 0
        assert y >= 0
        assert x + width <= sizes[one["image_id"]][0] + 1e-3
        assert y + height <= sizes[one["image_id"]][1] + 1e-3
    assert cli.main(typed) == 2  # not empty


def test_a_broken_picture_is_named_and_nothing_is_written(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    typed = [
        "predict",
        str(tmp_path / "broken.png"),
        "--model",
        str(teacher),
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main(typed) == 2
    told = capsys.readouterr().err
    assert "broken.png" in told and "give others" in told and "annotations" not in told
    assert not (tmp_path / "out").exists()


def test_compared_methods_are_spelled_freely() -> None:
    assert flags.labels(" none, pkd + crosskd-roi,proposal-kd,pkd+crosskd_roi") == [
        "none",
        "pkd+crosskd_roi",
        "proposal_kd",
    ]


def test_a_comparison_goes_on_without_its_flags(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "table"
    pair = [
        "compare",
        "--student",
        MODEL,
        "--teacher",
        str(teacher),
        "--teacher.sample",
        "0",
        *TINY,
        "--max-steps",
        "1",
    ]
    assert (
        cli.main(
            [
                *pair,
                "--methods",
                "pkd",
                "--methods.pkd.weight",
                "2",
                "--seeds",
                "1",
                "--resamples",
                "5",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    (out / "pkd/seed-0/metrics.json").unlink()
    assert cli.main(["compare", "--resume", "--out", str(out), "--resamples", "5"]) == 0
    assert "pkd" in capsys.readouterr().out.split("written to")[-2]
    assert "weight: 2" in (out / "pkd/seed-0/recipe.yaml").read_text()
    assert cli.main(["compare", "--resume", "--out", str(out), "--methods", "pkd", "--methods.pkd.weight", "3"]) == 2
    assert "methods.pkd was {'weight': 2} and is {'weight': 3}" in capsys.readouterr().err


def test_a_state_dict_is_measured_as_it_was_built(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save(dd.load(teacher).state_dict(), tmp_path / "own.pt")
    typed = [
        "evaluate",
        "--model",
        f"{MODEL}={tmp_path / 'own.pt'}",
        "--data",
        "shapes:8",
        "--image-size",
        "64",
        "--device",
        "cpu",
    ]
    assert cli.main([*typed, *SHAPE[:-2], "--out", str(tmp_path / "found")]) == 0
    assert read(tmp_path / "found/metrics.json")["per_class"] == read(teacher / "metrics.json")["per_class"]
    assert cli.main(typed) == 2
    assert "--model.channels" in capsys.readouterr().err
    assert cli.main(["evaluate", "--model", str(teacher), "--data", "shapes:8", "--model.channels", "64"]) == 2
    assert "leave out model.channels" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["detectors", "methods", "recipes"])
def test_list_names_what_there_is(what: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["list", what]) == 0
    wanted = {
        "detectors": ["gfl:BACKBONE", "torchvision:fcos"],
        "methods": ["pkd", "2306.11369", "neck"],
        "recipes": ["demo-teacher"],
    }
    told = capsys.readouterr().out
    assert [word for word in wanted[what] if word not in told] == []


@pytest.mark.parametrize("width", [80, 120, 200])
def test_a_list_fits_the_terminal(width: int) -> None:
    console = Console(
        force_terminal=True, width=width, color_system=None, soft_wrap=True, markup=False, record=True, file=StringIO()
    )
    for what in ("methods", "detectors", "recipes"):
        listing(what, None, console)
    for name in ("pkd", "fgfi", "crosskd"):
        listing("methods", name, console)
    told = console.export_text()
    assert max(map(len, told.splitlines())) <= width
    assert all(group in told for group in by_group())
    assert ("arXiv:2207.02039\n" in told.split("dense predictions")[0]) == (width == 200)


def test_a_list_in_a_pipe_is_a_row_a_line(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["list", "methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(METHODS)]] == list(METHODS)
    expected = {
        "all",
        "dense",
        "RoI",
        "dense, RoI",
        "gfl",
        "d_fine",
        "queries",
        "learned queries",
        "queries but adamixer",
    }
    assert {heads_in_words(heads) for heads in served().values()} == expected


def test_one_method_is_told_whole(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["list", "methods", "pkd"]) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("2207.02039", "least_positions", "16", "warmup_steps"))
    assert any(line.split()[:2] == ["weight", "6.0"] and "beside crosskd" in line for line in told.splitlines())
    assert cli.main(["list", "methods", "pkdd"]) == 2
    assert "'pkd'" in capsys.readouterr().err
    assert cli.main(["list", "recipes", "demo"]) == 2
    assert "leave demo out" in capsys.readouterr().err


def test_the_demo_trains_three_and_takes_up_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "demo"
    typed = [
        "demo",
        "--max-steps",
        "1",
        "--data",
        "shapes:8",
        "--image-size",
        "64",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    assert cli.main(typed) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("teacher", "plain", "distilled", "docs/results.md", "one seed"))
    table = read(out / "table.json")
    assert [row["name"] for row in table["rows"]] == ["teacher", "plain", "distilled"]
    with Image.open(out / "detections.png") as picture:
        assert picture.width % 3 == 0
    plain, taught = (
        json.loads((out / name / "log.jsonl").read_text().splitlines()[0]) for name in ("plain", "distilled")
    )
    same = [name for name in plain if name.startswith("task_")]
    assert {name: taught[name] for name in same} == {
        name: plain[name] for name in same
    }  # one seed, one start, one batch
    written = (out / "teacher/model.safetensors").stat().st_mtime_ns
    assert cli.main(typed) == 2
    assert cli.main([*typed, "--resume"]) == 0
    assert (out / "teacher/model.safetensors").stat().st_mtime_ns == written
