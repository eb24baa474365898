"""The demo: three runs, a table, a picture, an ONNX file and a page."""

import json
from pathlib import Path

import pytest
from PIL import Image

from detdistill.recipe import load as load_recipe
from detdistill.run import demonstration
from detdistill.run.demonstration import STUDENT, TEACHER
from tests.cli.commands import DATA, detdistill

from .recipes import read_json

SHORT = f"{DATA} --max-steps 1"


def first_log_row(run: Path) -> dict:
    """The first row of log.jsonl."""
    return json.loads((run / "log.jsonl").read_text().splitlines()[0])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a demo of one step."""
    out = tmp_path_factory.mktemp("demo") / "out"
    assert detdistill(f"demo {SHORT} --out {out}") == 0
    return out


def test_the_demo_trains_three_detectors(finished: Path) -> None:
    assert [row["name"] for row in read_json(finished / "table.json")["rows"]] == ["teacher", "plain", "distilled"]
    with Image.open(finished / "detections.png") as picture:
        assert picture.width % 3 == 0
    # Both students have the same seed, so the same first weights and the same first batch.
    plain, distilled = first_log_row(finished / "plain"), first_log_row(finished / "distilled")
    task_terms = [name for name in plain if name.startswith("task_")]
    assert {name: distilled[name] for name in task_terms} == {name: plain[name] for name in task_terms}


def test_the_students_differ_in_their_methods_only() -> None:
    teacher, student = load_recipe(TEACHER), load_recipe(STUDENT)
    assert teacher.data == student.data
    assert not teacher.methods and student.methods


def test_the_page_shows_the_exported_student(finished: Path) -> None:
    record = read_json(finished / "distilled/student.onnx.json")
    assert read_json(finished / "table.json")["onnx"] == {"path": str(finished / "distilled/student.onnx"), **record}
    page = (finished / "report.html").read_text()
    assert all(text in page for text in ("student.onnx", "fcos:resnet18", "cwd"))


def test_resume_keeps_finished_runs_and_ends_with_the_page(finished: Path, capsys: pytest.CaptureFixture) -> None:
    command = f"demo {SHORT} --out {finished}"
    kept = [finished / "teacher/model.safetensors", finished / "distilled/student.onnx"]
    before = [path.stat().st_mtime_ns for path in kept]
    assert detdistill(command) == 2
    capsys.readouterr()
    assert detdistill(f"{command} --resume") == 0
    assert [path.stat().st_mtime_ns for path in kept] == before
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(finished / "report.html")
    stages = [line.split(":")[0] for line in lines if line[:1].isdigit() and line[1:3] == "/5"]
    assert stages == ["1/5 teacher", "2/5 plain", "3/5 distilled", "4/5 ONNX", "5/5 report"]
    assert not any("left in all" in line for line in lines)
    assert any("docs/results.md" in line and "one seed" in line for line in lines)
    assert any(line.startswith("ONNX: ") and "ms per image" in line for line in lines)


def test_without_the_extra_the_demo_says_what_to_install_and_ends_with_the_page(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def export(*arguments: object, **options: object) -> None:
        raise ModuleNotFoundError("No module named 'onnx'", name="onnx")

    (finished / "distilled/student.onnx").unlink()
    monkeypatch.setattr(demonstration, "export", export)
    assert detdistill(f"demo {SHORT} --out {finished} --resume") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("onnx is missing" in line and "pip install 'detdistill[onnx]'" in line for line in lines) == 1
    assert lines[-1] == str(finished / "report.html")


@pytest.mark.parametrize(
    ("seconds", "waiting", "expected"),
    [
        ({}, ["teacher", "plain", "distilled"], ""),
        ({"teacher": 100.0}, ["plain", "distilled"], " (about 0:01:40 left in all)"),
        ({"teacher": 100.0}, ["distilled"], " (about 0:01:10 left in all)"),
        ({"teacher": 100.0, "plain": 30.0}, [], ""),
    ],
)
def test_the_time_that_is_left_follows_from_the_finished_stages(
    seconds: dict[str, float], waiting: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demonstration, "COSTS", {"teacher": 50, "plain": 15, "distilled": 35})
    assert demonstration.time_left(seconds, waiting) == expected
