"""The step bench measures what it says, and writes the rows that others read."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

PATH = Path(__file__).parents[2] / "bench" / "step.py"


@pytest.fixture(scope="module")
def step() -> dict[str, Any]:
    return runpy.run_path(str(PATH))


def bench(step: dict[str, Any], *methods: str) -> Any:
    setting = step["Setting"](image_size=80, batch_size=2, channels=32, tower_depth=2, levels=3, repeats=1)
    return step["Bench"](step["Case"]("gfl:mobilenetv2_035", "gfl:mobilenetv2_050", methods), setting)


def test_rows_hold_the_ratio_and_its_parts(step: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "step.json"
    small = [
        "--image-size",
        "80",
        "--batch-size",
        "2",
        "--channels",
        "32",
        "--repeats",
        "2",
        "--teacher",
        "mobilenetv2_050",
    ]
    monkeypatch.setattr(
        "sys.argv",
        ["step.py", "--quick", "--detector", "fcos", "--method", "pkd", "pkd,crosskd", "--json", str(file), *small],
    )
    step["main"]()
    result = json.loads(file.read_text())
    assert [(row["detector"], row["method"]) for row in result["rows"]] == [("fcos", "pkd"), ("fcos", "pkd+crosskd")]
    features, both = result["rows"]
    assert features["tail_ms"] == 0 < both["tail_ms"]
    assert features["ratio"] == features["ratio_without_tail"]
    assert both["ratio"] < both["ratio_without_tail"]
    for row in result["rows"]:
        assert row["ratio_spread"][0] <= row["ratio"] <= row["ratio_spread"][1]
        assert 0.3 < row["distill_ms"] / row["ideal_ms"] < 3
    assert result["environment"]["clock"] == "process"


def test_a_round_changes_nothing_that_the_next_would_notice(step: dict[str, Any]):
    made = bench(step, "crosskd")
    before = [parameter.clone() for parameter in made.student.parameters()]
    for piece in (made.student_step, made.teacher_look, made.distillation_step, made.tail()):
        piece()
    assert all(torch.equal(one, other) for one, other in zip(made.student.parameters(), before, strict=True))
    assert all(parameter.grad is None for parameter in (*made.student.parameters(), *made.teacher.parameters()))


def test_the_look_is_as_deep_as_the_need_and_the_tail_is_crosskds_alone(step: dict[str, Any]):
    features, crossed = bench(step, "pkd"), bench(step, "pkd", "crosskd")
    assert features.teacher_look().stages == ()
    assert features.tail() is None
    assert len(crossed.teacher_look().stages) == 1
    assert crossed.tail() is not None
