"""What the inspection of a data set prints and writes."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from detdistill import run
from detdistill.errors import UserError
from detdistill.recipe import DataConfig, ModelConfig
from tests.inspection.made import clean_files, picture, write_coco

from .recipes import read_json


def printed(root: Path, width: int | None = None, **options: object) -> str:
    """What is printed, on a terminal of this width or, without one, into a file."""
    stream = StringIO()
    console = Console(
        file=stream, force_terminal=width is not None, width=width, color_system=None, markup=False, soft_wrap=True
    )
    run.inspect_data(DataConfig(path=str(root), image_size=(96, 128)), console=console, **options)
    return stream.getvalue()


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A data set with a leak: a.png of train is also in test."""
    test = clean_files(50) | {"a.png": (picture(0), [])}
    return write_coco(tmp_path / "data", {"train": clean_files(0), "test": test})


def test_findings_are_printed_with_examples_and_remedies(planted: Path) -> None:
    text = printed(planted)
    assert "data: COCO JSON" in text
    lines = text.splitlines()
    assert "problem: 1 image of test is also in train" in lines
    assert "    a.png like 0.png" in lines
    assert any(line.startswith("    remedy: ") for line in lines)
    assert lines[-1] == "2 findings (1 problem, 1 note); the worst: 1 image of test is also in train"
    row = next(line for line in lines if line.startswith("train"))
    assert row.split() == ["train", "10", "20", "0"]


@pytest.mark.parametrize("width", [80, 100])
def test_the_report_fits_the_terminal(planted: Path, width: int) -> None:
    assert max(map(len, printed(planted, width).splitlines())) <= width


def test_the_numbers_and_samples_are_written(planted: Path, tmp_path: Path) -> None:
    out, numbers = tmp_path / "out", tmp_path / "numbers.json"
    text = printed(planted, out=out, json=numbers)
    assert f"written to {out}/samples.jpg" in text and f"written to {numbers}" in text
    assert len(list(out.iterdir())) == 11
    assert read_json(numbers)["findings"][0]["kind"] == "leak"
    with pytest.raises(UserError, match="is not empty"):
        printed(planted, out=out)
    with pytest.raises(UserError, match="name a file"):
        printed(planted, json=out)


def test_strides_and_size_are_those_of_the_model(planted: Path, teacher_run: Path) -> None:
    report = run.inspect_data(str(planted), model=ModelConfig(name=str(teacher_run)))
    assert report.boxes.strides == (8, 16, 32)
    assert report.boxes.canvas == (64, 64)
    assert set(report.boxes.uncovered) == {"atss"}
    report = run.inspect_data(str(planted), model=ModelConfig(name="adamixer:resnet18"))
    assert (report.boxes.strides, report.boxes.uncovered) == ((4, 8, 16, 32), {})
    report = run.inspect_data(str(planted), model=ModelConfig(strides=(16,)))
    assert (report.boxes.strides, set(report.boxes.uncovered)) == ((16,), {"atss", "fcos"})


@pytest.mark.parametrize(
    ("name", "message"), [("gfll:resnet18", "did you mean 'gfl'"), ("hf:facebook/detr-resnet-50", "--model.strides")]
)
def test_a_wrong_model_is_one_line(planted: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run.inspect_data(str(planted), model=ModelConfig(name=name))


def test_of_many_classes_the_most_and_the_least_frequent_are_shown(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "more)" not in printed(planted)
    monkeypatch.setattr("detdistill.run.inspecting.SHOWN", 1)
    assert "(1 more)" in printed(planted)
