"""The table of runs that were made one by one is the table that a comparison makes of them."""

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
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train(Recipe.model_validate(FIELDS), folder / "teacher")
    taught = load(None, FIELDS | {"teacher": {"sample": 0, "path": str(folder / "teacher")}}, ["pkd"])
    compare([Entry("pkd", taught)], 1, folder / "table", resamples=20)
    return folder


def called(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.syspath_prepend(str(FOLDER))
    import standings  # type: ignore[import-not-found]

    monkeypatch.setattr("sys.argv", ["standings.py", *map(str, words)])
    return standings.main()


def test_it_says_what_a_comparison_says(table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    assert called(monkeypatch, table / "table", "--teacher", table / "teacher", "--resamples", 20) == 0
    mine, theirs = capsys.readouterr().out.splitlines(), (table / "table" / "comparison.md").read_text().splitlines()
    assert mine[2:] == theirs[2:]
    assert len(mine) == 6


def test_what_is_not_finished_is_left_out_and_other_recipes_are_refused(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    shutil.copytree(table / "table", tmp_path / "table")
    shutil.copytree(tmp_path / "table" / "pkd", tmp_path / "table" / "begun")
    (tmp_path / "table" / "begun" / "seed-0" / "metrics.json").unlink()
    assert called(monkeypatch, tmp_path / "table", "--resamples", 20) == 0
    said = capsys.readouterr()
    assert f"begun: left out, not finished: {tmp_path}/table/begun/seed-0" in said.err
    assert "begun" not in said.out
    recipe = tmp_path / "table" / "pkd" / "seed-0" / "recipe.yaml"
    text = recipe.read_text()
    for field, other, told in (
        ("seed: 0", "seed: 1", "train.seed is 1 and there 0"),
        ("log_every: ", "log_every: 1", None),
    ):
        recipe.write_text(text.replace(field, other))
        assert called(monkeypatch, tmp_path / "table", "--resamples", 20) == (2 if told else 0)
        assert told is None or told in capsys.readouterr().err
    shutil.copytree(tmp_path / "table" / "pkd", tmp_path / "table" / "other")
    recipe.write_text(text.replace("inherit: []", "inherit: [neck]"))
    assert called(monkeypatch, tmp_path / "table") == 2
    assert "teacher.inherit" in capsys.readouterr().err
    assert called(monkeypatch, tmp_path) == 2
    assert "no finished run none/SEED" in capsys.readouterr().err
