"""`bench/step.py` measures the parts that it names, and writes one row for every pair that is requested."""

import json
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

PATH = Path(__file__).parents[2] / "bench" / "step.py"
SMALL = shlex.split("--quick --image-size 80 --batch-size 2 --channels 32 --teacher mobilenetv2_050")


@pytest.fixture(scope="module")
def step() -> dict[str, Any]:
    """The names of the module `step`."""
    return runpy.run_path(str(PATH))


def make_bench(step: dict[str, Any], *methods: str) -> Any:
    """A small Bench of two GFLs with these methods."""
    setting = step["Setting"](image_size=80, batch_size=2, channels=32, tower_depth=2, levels=3, repeats=1)
    return step["Bench"](step["Case"]("gfl:mobilenetv2_035", "gfl:mobilenetv2_050", methods), setting)


def run_main(step: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of `step.py` with these arguments."""
    monkeypatch.setattr("sys.argv", ["step.py", *map(str, arguments)])
    return step["main"]()


def test_rows_hold_the_ratio_and_its_parts(step: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "step.json"
    pairs = ["--detector", "fcos", "--method", "pkd", "pkd,crosskd", "--repeats", "2"]
    assert run_main(step, monkeypatch, *SMALL, *pairs, "--json", file) == 0
    result = json.loads(file.read_text())
    assert [(row["detector"], row["method"]) for row in result["rows"]] == [("fcos", "pkd"), ("fcos", "pkd+crosskd")]
    features, both = result["rows"]
    assert features["tail_ms"] == 0 < both["tail_ms"]
    assert features["ratio"] == features["ratio_without_tail"]
    assert both["ratio"] < both["ratio_without_tail"]
    for row in result["rows"]:
        assert "reason" not in row
        assert row["ratio_spread"][0] <= row["ratio"] <= row["ratio_spread"][1]
        # With two rounds, the median is the mean.
        parts = row["student_ms"] + row["teacher_ms"] + row["tail_ms"]
        assert row["ideal_ms"] == pytest.approx(parts, abs=0.03)
    assert result["environment"]["clock"] == "process"


def test_every_requested_pair_is_a_row_with_a_ratio_or_a_reason(
    step: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    file = tmp_path / "step.json"
    pairs = ["--detector", "faster_rcnn", "gfl", "--method", "kd", "pkd,crosskd", "--repeats", "1"]
    assert run_main(step, monkeypatch, *SMALL, *pairs, "--json", file) == 0
    rows = {(row["detector"], row["method"]): row for row in json.loads(file.read_text())["rows"]}
    assert set(rows) == {(detector, method) for detector in ("faster_rcnn", "gfl") for method in ("kd", "pkd+crosskd")}
    for pair in (("faster_rcnn", "kd"), ("gfl", "pkd+crosskd")):
        assert rows[pair]["ratio"] > 0 and "reason" not in rows[pair]
    refused = {("gfl", "kd"): "has no RoI head", ("faster_rcnn", "pkd+crosskd"): "method crosskd: the student"}
    table = capsys.readouterr().out
    for pair, message in refused.items():
        assert message in rows[pair]["reason"] and "ratio" not in rows[pair] and "failed" not in rows[pair]
        assert f"| {pair[0]} | {pair[1]} | {rows[pair]['reason']} |" in table


def test_only_the_default_pairs_leave_out_refused_pairs(
    step: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "step.json"
    monkeypatch.setitem(step["main"].__globals__, "QUICK_DETECTORS", ("gfl", "faster_rcnn"))
    monkeypatch.setitem(step["main"].__globals__, "DEFAULT_METHODS", ("crosskd",))
    assert run_main(step, monkeypatch, *SMALL, "--repeats", "1", "--json", file) == 0
    assert [row["detector"] for row in json.loads(file.read_text())["rows"]] == ["gfl"]
    assert run_main(step, monkeypatch, *SMALL, "--detector", "faster_rcnn", "--json", file) == 0
    assert [row["detector"] for row in json.loads(file.read_text())["rows"]] == ["faster_rcnn"]


def test_a_failure_is_a_row_and_the_exit_code_is_1(step: dict[str, Any], tmp_path: Path, monkeypatch: Any):
    file = tmp_path / "step.json"
    pair = ["--detector", "gfl", "--method", "pkd", "--student", "no_such_backbone", "--json", file]
    assert run_main(step, monkeypatch, *SMALL, *pair) == 1
    (row,) = json.loads(file.read_text())["rows"]
    assert row["failed"] and "no_such_backbone" in row["reason"] and "ratio" not in row


def test_an_unknown_method_is_an_error(
    step: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    with pytest.raises(SystemExit) as stop:
        run_main(step, monkeypatch, "--method", "pkd,no_such_method")
    assert stop.value.code == 2
    assert "unknown method 'no_such_method'" in capsys.readouterr().err


def test_a_round_changes_no_weight_and_leaves_no_gradient(step: dict[str, Any]):
    bench = make_bench(step, "crosskd")
    before = [parameter.clone() for parameter in bench.student.parameters()]
    for part in (bench.student_step, bench.teacher_forward, bench.distillation_step, bench.tail()):
        part()
    for parameter, value in zip(bench.student.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
    assert all(parameter.grad is None for parameter in (*bench.student.parameters(), *bench.teacher.parameters()))


def test_the_teacher_stops_after_what_is_read_and_only_crosskd_has_a_tail(step: dict[str, Any]):
    features, both = make_bench(step, "pkd"), make_bench(step, "pkd", "crosskd")
    assert features.teacher_forward().stages == ()
    assert features.tail() is None
    assert len(both.teacher_forward().stages) == 1
    assert both.tail() is not None
