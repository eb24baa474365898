"""The commands: what they print, the exit codes, and runs that are continued from the command line."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from detdistill import cli, run
from detdistill.cli import flags
from tests.run.recipes import MODEL, read_json

from .commands import SMALL, assert_refused, detdistill, train

STUDENT = "--student gfl:resnet18 --data shapes:8"


def distill(teacher: Path, out: Path, more: str) -> int:
    """Distill the small model with PKD and CrossKD, and return the exit code. more: further arguments."""
    pair = f"--student {MODEL} --teacher {teacher} --teacher.allow-weak --method pkd,crosskd"
    return detdistill(f"distill {pair} {SMALL} --out {out} {more}")


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A finished Python process with these arguments."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


# Start.


def test_parsing_imports_no_large_library() -> None:
    code = (
        "import sys, detdistill, detdistill.cli, detdistill.recipe; "
        "assert not {'torch', 'torchvision', 'timm'} & set(sys.modules)"
    )
    process = run_python("-c", code)
    assert process.returncode == 0, process.stderr


def test_the_module_runs_the_command_line() -> None:
    process = run_python("-m", "detdistill", "--help")
    assert process.returncode == 0
    commands = ("demo", "train", "distill", "compare", "evaluate", "predict", "export", "inspect", "doctor", "list")
    assert all(command in process.stdout for command in commands)
    process = run_python("-m", "detdistill", "train", "--epcohs", "3")
    assert process.returncode == 2
    assert process.stderr == "detdistill: Unknown option: --epcohs. Did you mean --epochs?\n"


def test_the_whole_help_has_every_flag(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # so that long names are not broken
    assert detdistill("distill --help-all") == 0
    printed = capsys.readouterr().out
    common = (
        "recipe epochs seed out batch-size image-size lr workers device precision max-steps resume overwrite "
        "backbone-weights on-bad-record import"
    )
    assert [name for name in common.split() if f"--{name} " not in printed] == []
    assert [path for path in flags.FIELDS if f"--{path.replace('_', '-')}" not in printed] == []


# Exit codes.


@pytest.mark.parametrize(
    ("command", "parts"),
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
        (
            "train --model hf:nobody/detr --data shapes:8",
            ["hf:nobody/detr", "is already trained and can only teach", "HEAD:BACKBONE"],
        ),
        ("train --model gfl:resnet18 --data nowhere", ["nowhere", "no such folder"]),
        ("train --model gfl:resnet18 --data shapes:many --backbone-weights none", ["shapes"]),
        ("train --model gfl:resnet18 --data shapes:8 --device tpu --backbone-weights none", ["--device tpu"]),
        ("train --model gfl:resnet18 --data shapes:8 --device cpu --precision fp16", ["--precision fp16"]),
        ("train --model gfl:resnet18 --data shapes:8 --recipe nowhere.yaml", ["nowhere.yaml", "demo"]),
        ("train --model gfl:resnet18 --data shapes:8 --resume", ["--resume needs --out"]),
        ("train --model gfl:resnet18 --data shapes:8 --resume --out nowhere", ["nowhere", "--resume"]),
        ("train --model gfl:resnet18 --data shapes:8 --resume --overwrite --out a", ["--resume", "--overwrite"]),
        (
            "train --model gfl:resnet18 --data shapes:8 --model.options.groups 2 --backbone-weights none",
            ["model.options.groups", "gfl has no such option", "it has no options of its own"],
        ),
        (
            "train --model adamixer:resnet18 --data shapes:8 --model.options.grups 2 --backbone-weights none",
            ["model.options.grups", "adamixer has no such option", "did you mean 'groups'"],
        ),
        (
            "train --model adamixer:resnet18 --data shapes:8 --model.options.groups two --backbone-weights none",
            ["model.options.groups is 'two': input should be a valid integer"],
        ),
        (f"distill {STUDENT} --teacher x", ["--method"]),
        (f"distill {STUDENT} --teacher x --method pkdd", ["'pkdd'", "'pkd'"]),
        (f"distill {STUDENT} --teacher x --method pkd,", ["'pkd,'"]),
        (f"distill {STUDENT} --method pkd --methods.pkd.wieght 3", ["'wieght'", "'weight'"]),
        (f"distill {STUDENT} --method pkd --methods.pkd.weight heavy", ["methods.pkd.weight", "'heavy'"]),
        (f"distill {STUDENT} --method pkd --methods.crosskd.align false", ["--methods.crosskd", "--method"]),
        (f"distill {STUDENT} --method pkd", ["no teacher", "--teacher"]),
        (f"distill {STUDENT} --method pkd --teacher nowhere", ["nowhere", "run folder"]),
        (f"compare {STUDENT} --teacher x", ["--methods", "none,pkd"]),
        (f"compare {STUDENT} --teacher x --methods pkd+,kd", ["'pkd+'"]),
        (f"compare {STUDENT} --teacher x --methods pkd+none", ["'pkd+none'", "alone"]),
        (f"compare {STUDENT} --teacher x --methods pkd+pkd", ["'pkd+pkd'", "different"]),
        (f"compare {STUDENT} --teacher x --methods pkd --resamples 0", ["--resamples 0"]),
        (f"compare {STUDENT} --teacher x --methods pkd --methods.kd.weight 2", ["--methods.kd", "add kd"]),
        (f"compare {STUDENT} --methods pkd --backbone-weights none", ["no teacher"]),
        ("evaluate --model nowhere --data shapes:8", ["nowhere", "run folder"]),
        ("evaluate --model hf:./nowhere --data shapes:8", ["hf:./nowhere", "no such folder"]),
        ("evaluate --model x", ["--data"]),
        ("predict --model x --out y", ["no images"]),
        ("predict nothing.png --model x --out y", ["nothing.png"]),
        ("export --model nowhere --out y", ["nowhere", "not a run folder"]),
        ("export --model nowhere --out y --format tflite", ["tflite", "transformers"]),
        ("export --model nowhere --out y --format onnx", ["--out y", ".onnx"]),
        ("list models", ["models", "methods"]),
    ],
)
def test_wrong_input_is_one_line_on_stderr_and_exit_code_2(
    command: str,
    parts: list[str],
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(command, parts, capsys)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any, **keywords: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", interrupt)
    assert cli.main(["train"]) == 1
    assert capsys.readouterr().err == "detdistill: interrupted; continue with --resume --out DIR\n"


def test_any_other_exception_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **keywords: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(run, "train", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train"])


# Runs.


def test_the_flags_train_the_model_of_the_recipe(teacher_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(f"--max-steps 2 --seed 1 --out {out}") == 0
    for name in ("model.safetensors", "recipe.yaml"):
        assert (out / name).read_bytes() == (teacher_run / name).read_bytes(), name


def test_the_recipe_of_a_run_trains_the_same_weights(teacher_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "repeated"
    assert detdistill(f"train --recipe {teacher_run}/recipe.yaml --out {out}") == 0
    for name in ("model.safetensors", "recipe.yaml"):
        assert (out / name).read_bytes() == (teacher_run / name).read_bytes(), name


def test_a_resumed_run_ends_as_the_whole_run_does(
    teacher_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert distill(teacher_run, whole, "--max-steps=3") == 0
    assert distill(teacher_run, resumed, "--max-steps=1") == 0
    assert detdistill(f"distill --resume --out {resumed} --max-steps 3") == 0
    for name in ("model.safetensors", "recipe.yaml"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name
    assert read_json(whole / "metrics.json")["AP"] == read_json(resumed / "metrics.json")["AP"]
    before = (resumed / "model.safetensors").stat().st_mtime_ns
    assert detdistill(f"distill --resume --out {resumed}") == 0
    assert "finished" in capsys.readouterr().out
    assert (resumed / "model.safetensors").stat().st_mtime_ns == before
    assert detdistill(f"distill --resume --out {resumed} --max-steps 4 --lr 0.5") == 2
    assert "train.lr" in capsys.readouterr().err


def test_a_comparison_is_resumed_with_the_settings_in_its_folder(
    teacher_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "table"
    pair = f"--student {MODEL} --teacher {teacher_run} --teacher.sample 0 {SMALL} --max-steps 1"
    methods = "--methods pkd --methods.pkd.weight 2 --seeds 1 --resamples 5"
    assert detdistill(f"compare {pair} {methods} --out {out}") == 0
    (out / "pkd/seed-0/metrics.json").unlink()
    assert detdistill(f"compare --resume --out {out} --resamples 5") == 0
    assert "pkd" in capsys.readouterr().out.split("written to")[-2]
    assert "weight: 2" in (out / "pkd/seed-0/recipe.yaml").read_text()
    assert detdistill(f"compare --resume --out {out} --methods pkd --methods.pkd.weight 3") == 2
    assert "methods.pkd was {'weight': 2} and is {'weight': 3}" in capsys.readouterr().err
