"""`inspect` and `doctor` on the command line."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from detdistill.inspection import machine
from detdistill.inspection.check import Check
from tests.run.recipes import read_json

from .commands import ARCHITECTURE, MODEL, assert_refused, detdistill


def test_a_data_set_is_inspected(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert detdistill(f"inspect shapes:8 --image-size 64 --model.strides 4,8 --json {tmp_path}/numbers.json") == 0
    assert "findings" in capsys.readouterr().out
    assert read_json(tmp_path / "numbers.json")["boxes"]["strides"] == [4, 8]


def test_a_recipe_gives_data_and_model(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("data: {path: 'shapes:8', image_size: 64}\nmodel: {strides: [16]}\n")
    assert detdistill(f"inspect --recipe {tmp_path}/recipe.yaml --json {tmp_path}/numbers.json") == 0
    assert read_json(tmp_path / "numbers.json")["boxes"]["strides"] == [16]


def test_models_are_inspected_instead_of_the_data(
    teacher_run: Path, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    command = (
        f"inspect shapes:8 --student {MODEL} --teacher {teacher_run} --method pkd,kd --json {tmp_path}/numbers.json"
    )
    assert detdistill(f"{command} --batch-size 4 {ARCHITECTURE} --device cpu") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["strides", "8,16,32", "8,16,32"] for line in lines)
    assert "1 method can't serve this pair:" in lines
    content = read_json(tmp_path / "numbers.json")
    assert content["methods"]["pkd"]["hours"] > 0 and content["student"]["name"] == MODEL


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("inspect", ["no data set"]),
        ("inspect shapes:8 --epochs 3", ["--train.epochs is not read", "--student"]),
        ("inspect shapes:8 --method pkd", ["--method is not read"]),
        ("inspect shapes:8 --model.options.groups 2", ["--model.options is not read"]),
        ("inspect shapes:8 --student gfl:resnet18 --out x", ["--out", "drawn samples"]),
        ("inspect --student gfl:resnet18 --model fcos:resnet18", ["given twice"]),
        ("inspect --student gfl:resnet18", ["--image-size"]),
        ("inspect --teacher hf:nowhere-at-all --image-size 64", ["nowhere-at-all"]),
        ("inspect shapes:8 --teacher nowhere", ["nowhere"]),
        ("inspect nowhere", ["nowhere", "no such folder"]),
        ("inspect shapes:8 --data shapes:8", ["given twice"]),
        ("inspect shapes:8 --data.train-split tarin", ["'tarin'", "'train'"]),
        ("inspect shapes:8 --json .", ["--json .", "name a file"]),
        ("doctor --json .", ["--json .", "name a file"]),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    command: str, parts: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(command, parts, capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("state", "code"), [("warning", 0), ("problem", 1)])
def test_the_exit_code_says_whether_training_can_work(
    state: str, code: int, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def check() -> Iterator[Check]:
        yield Check("disk", state, "it is full", "free some space")

    monkeypatch.setattr(machine, "CHECKS", {"disk": check})
    assert detdistill(f"doctor --json {tmp_path}/checks.json") == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [state, "disk", "it", "is", "full"]
    assert lines[1].strip() == "remedy: free some space"
    assert read_json(tmp_path / "checks.json")["checks"][0]["state"] == state
