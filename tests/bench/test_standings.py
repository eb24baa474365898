"""`bench/standings.py` makes the same table as `detdistill compare`."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from detdistill.recipe import Recipe, load
from detdistill.run import train
from detdistill.run.comparison import Entry, compare

FOLDER = Path(__file__).parents[2] / "bench"
FIELDS: dict[str, Any] = {
    "model": {
        "name": "fcos:mobilenetv2_035",
        "strides": [8, 16, 32],
        "channels": 16,
        "tower_depth": 2,
        "backbone_weights": "none",
    },
    "data": {"path": "shapes:8", "image_size": 64},
    "train": {"epochs": 1, "batch_size": 4, "max_steps": 1},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `teacher` and the comparison `table` of plain training and pkd."""
    folder = tmp_path_factory.mktemp("runs")
    train(Recipe.model_validate(FIELDS), folder / "teacher")
    recipe = load(None, FIELDS | {"teacher": {"sample": 0, "path": str(folder / "teacher")}}, ["pkd"])
    compare([Entry("pkd", recipe)], 1, folder / "table", resamples=20)
    return folder


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of `standings.py` with these arguments."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import standings  # type: ignore[import-not-found]

    monkeypatch.setattr("sys.argv", ["standings.py", *map(str, arguments)])
    return standings.main()


def test_the_table_equals_the_table_of_a_comparison(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert run_main(monkeypatch, runs / "table", "--teacher", runs / "teacher", "--resamples", 20) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = (runs / "table" / "comparison.md").read_text().splitlines()
    assert lines[2:] == expected[2:]
    assert len(lines) == 6


@pytest.fixture
def table(runs: Path, tmp_path: Path) -> Path:
    """A copy of the comparison that a test may change."""
    return Path(shutil.copytree(runs / "table", tmp_path / "table"))


def test_a_label_with_an_unfinished_run_is_left_out(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    shutil.copytree(table / "pkd", table / "unfinished")
    (table / "unfinished" / "seed-0" / "metrics.json").unlink()
    assert run_main(monkeypatch, table, "--resamples", 20) == 0
    output = capsys.readouterr()
    assert f"unfinished: left out, not finished: {table}/unfinished/seed-0" in output.err
    assert "unfinished" not in output.out


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed: 0", "seed: 1", "train.seed is 1 instead of 0"),
        ("log_every: ", "log_every: 1", None),  # does not change the result of a run
    ],
)
def test_fields_that_change_the_result_must_be_equal(
    table: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    field: str,
    value: str,
    message: str | None,
):
    recipe = table / "pkd" / "seed-0" / "recipe.yaml"
    assert field in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(field, value))
    assert run_main(monkeypatch, table, "--resamples", 20) == (2 if message else 0)
    assert message is None or message in capsys.readouterr().err


def test_distilled_runs_with_different_teacher_fields_are_an_error(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    shutil.copytree(table / "pkd", table / "second")
    recipe = table / "pkd" / "seed-0" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("inherit: []", "inherit: [neck]"))
    assert run_main(monkeypatch, table) == 2
    assert "teacher.inherit" in capsys.readouterr().err


def test_a_folder_without_a_plain_run_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert run_main(monkeypatch, tmp_path) == 2
    assert "no finished run none/SEED" in capsys.readouterr().err
