"""`bench/predictions.py` compares predictions with runs."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from detdistill import run
from detdistill.recipe import Recipe

PATH = Path(__file__).parents[2] / "bench" / "predictions.py"
OPTIONS = SimpleNamespace(batch_size=4, steps=6, image_size=64)


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    """The names of the module `predictions`."""
    return runpy.run_path(str(PATH))


def test_a_prediction_and_a_run_of_one_recipe(bench: dict[str, Any], teacher_run: Path, tmp_path: Path) -> None:
    fields = {"channels": 32, "tower_depth": 2}
    name = "gfl:mobilenetv3_small_050"
    pair = bench["Pair"](name, name, (8, 16, 32), ("pkd",), fields)
    recipe: Recipe = bench["recipe_of"](pair, ["pkd"], teacher_run, OPTIONS)
    guess = bench["flat"]([run.inspect_pair(recipe, seconds=0.0).to_json()])
    assert guess.keys() == {"none", "pkd"}
    truth = bench["measured"](recipe, tmp_path / "run")
    row = bench["_row"](pair, "pkd", guess["pkd"], truth)
    assert row["step_error"] == pytest.approx(row["predicted_step"] / row["measured_step"] - 1, abs=1e-3)
    assert 0 < row["measured_step"] < row["measured_run"]
    assert abs(row["memory_error"]) < 0.5
    assert bench["line"](row).startswith(f"| {name} | {name} | pkd | ")
