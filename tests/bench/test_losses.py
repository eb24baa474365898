"""The bench of losses measures what it says, on outputs that are shaped like a detector's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from detdistill.methods import METHODS, by_group

FOLDER = Path(__file__).parents[2] / "bench"


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    import losses  # type: ignore[import-not-found]

    return losses


def test_peak_is_the_most_that_is_there_at_once(losses: Any):
    kept = torch.ones(5_000_000)

    def piece() -> None:
        first = torch.empty(10_000_000, dtype=torch.uint8)
        second = torch.empty(20_000_000, dtype=torch.uint8)
        del first
        third = torch.empty(5_000_000, dtype=torch.uint8)
        del second, third

    assert losses.peak_bytes(piece, torch.device("cpu")) == 30_000_000  # what was there before does not count
    # Backward of a sum of squares: the squares and the gradients of square and sum, one tensor each at most three at a time, never less than two.
    leaf = kept.requires_grad_()
    peak = losses.peak_bytes(lambda: leaf.square().sum().backward(), torch.device("cpu"))
    assert 2 * 20_000_000 <= peak <= 3 * 20_000_000 + 1000


def test_rows_for_the_form_that_a_method_takes(
    losses: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    file = tmp_path / "losses.json"
    monkeypatch.setattr(
        "sys.argv", ["losses.py", "--quick", "--repeats", "1", "--method", "pkd", "kd", "--json", str(file)]
    )
    assert losses.main() == 0
    result = json.loads(file.read_text())
    assert [(row["method"], row["form"]) for row in result["rows"]] == [("pkd", "dense"), ("kd", "two_stage")]
    for row in result["rows"]:
        assert row["forward_ms"] > 0 and row["both_ms"] > 0 and row["loss"] > 0
        assert row["peak_bytes"] > 10_000
    assert "| pkd | dense |" in capsys.readouterr().out


def test_a_refusal_is_a_row_with_its_reason(losses: Any):
    setting = losses.QUICK
    bench = losses.Bench(setting, "dense")
    row = losses.measure(bench, "kd", "dense")
    assert "RoI head" in row["refused"] and "forward_ms" not in row
    assert row["refused"] in losses.line(row)


@pytest.mark.parametrize("form", ["dense", "two_stage"])
def test_the_outputs_are_shaped_like_cocos(losses: Any, form: str):
    bench = losses.Bench(losses.Setting(channels=4, embedding=8, classes=3), form)
    shapes = [tuple(level.shape[-2:]) for level in bench.student.pyramids["neck"].levels]
    assert shapes == [(100, 136), (50, 68), (25, 34), (13, 17), (7, 9)]
    assert [len(boxes) for boxes in bench.targets.boxes] == [20, 20]
    positives = bench.student.stages[-1].assignment.positive.sum(1)
    assert (positives >= 20).all()
    assert bench.student.stages[0].logits.shape[1] == (1 if form == "dense" else 3) * 18134
    assert all(leaf.requires_grad for leaf in bench.leaves) and not bench.teacher.stages[-1].logits.requires_grad
    if form == "two_stage":
        assert bench.student.proposals.boxes.shape == (2, 512, 4)


def test_every_method_takes_a_form(losses: Any):
    benches = {form: losses.Bench(losses.QUICK, form) for form in ("dense", "two_stage")}
    sets = {
        method.name for method in by_group()["set predictions"]
    }  # a decoder is part of what they cost: bench/step.py
    for name in (name for name in METHODS if name not in sets):
        taken = []
        for bench in benches.values():
            try:
                taken.append(bench.build(name))
            except losses.UserError:
                continue
        assert taken, name
