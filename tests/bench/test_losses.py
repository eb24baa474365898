"""`bench/losses.py` measures time and memory correctly, on outputs with the shapes of real outputs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detdistill.methods import METHODS, by_group


@pytest.fixture
def losses(bench: Callable[[str], Any]) -> Any:
    """The module `losses`."""
    return bench("losses")


def test_the_peak_is_the_largest_memory_allocated_at_one_time(losses: Any):
    kept = torch.ones(5_000_000)

    def allocate() -> None:
        first = torch.empty(10_000_000, dtype=torch.uint8)
        second = torch.empty(20_000_000, dtype=torch.uint8)
        del first
        third = torch.empty(5_000_000, dtype=torch.uint8)
        del second, third

    assert losses.peak_bytes(allocate, torch.device("cpu")) == 30_000_000  # without `kept`, allocated before
    # The sum of squares allocates the squares, the gradient of the sum and the gradient of the leaf. Each has the size
    # of the leaf. At least two and at most three of them exist at one time.
    leaf = kept.requires_grad_()
    peak = losses.peak_bytes(lambda: leaf.square().sum().backward(), torch.device("cpu"))
    assert 2 * 20_000_000 <= peak <= 3 * 20_000_000 + 1000


def test_each_method_has_a_row_for_the_first_form_that_it_serves(
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


def test_a_refusal_is_a_row_with_the_reason(losses: Any):
    setting = losses.QUICK
    bench = losses.Bench(setting, "dense")
    row = losses.measure(bench, "kd", "dense")
    assert "RoI head" in row["refused"] and "forward_ms" not in row
    assert row["refused"] in losses.line(row)


@pytest.mark.parametrize("form", ["dense", "two_stage"])
def test_the_outputs_have_the_shapes_of_coco(losses: Any, form: str):
    bench = losses.Bench(losses.Setting(channels=4, embedding=8, classes=3), form)
    student_output = bench.student_output
    shapes = [tuple(level.shape[-2:]) for level in student_output.pyramids["neck"].levels]
    assert shapes == [(100, 136), (50, 68), (25, 34), (13, 17), (7, 9)]
    assert [len(boxes) for boxes in bench.targets.boxes] == [20, 20]
    positives = student_output.stages[-1].assignment.positive.sum(1)
    assert (positives >= 20).all()
    assert student_output.stages[0].logits.shape[1] == (1 if form == "dense" else 3) * 18134
    assert all(leaf.requires_grad for leaf in bench.leaves)
    assert not bench.teacher_output.stages[-1].logits.requires_grad
    if form == "two_stage":
        assert student_output.proposals.boxes.shape == (2, 512, 4)


def test_every_method_without_a_decoder_serves_one_of_the_forms(losses: Any):
    benches = [losses.Bench(losses.QUICK, form) for form in ("dense", "two_stage")]
    query_methods = {method.name for method in by_group()["set predictions"]}  # bench/step.py measures these
    for name in METHODS:
        if name not in query_methods:
            assert any(is_served(losses, bench, name) for bench in benches), name


def is_served(losses: Any, bench: Any, name: str) -> bool:
    """True if the method can be built for the pair."""
    try:
        bench.build(name)
    except losses.UserError:
        return False
    return True
