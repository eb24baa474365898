"""`bench/matching.py` compares two ways to find the same pairs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detdistill.losses import query_costs


@pytest.fixture
def matching(bench: Callable[[str], Any]) -> Any:
    """The module `matching`."""
    return bench("matching")


def test_both_sides_find_the_same_pairs_and_are_timed(
    matching: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    file = tmp_path / "matching.json"
    monkeypatch.setattr("sys.argv", ["matching.py", "--quick", "--device", "cpu", "--json", str(file)])
    assert matching.main() == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads(file.read_text())
    for name, parts in (("queries", {"cost", "solve", "total"}), ("targets", {"total"})):
        piece = result[name]
        assert piece["same_pairs"] == 1
        for side in ("batched", "one_by_one"):
            assert set(piece[side]) == {f"{part}_ms" for part in parts}
            assert all(value > 0 for value in piece[side].values())
        assert set(piece["ratio"]) == parts and all(value > 0 for value in piece["ratio"].values())
    assert (result["environment"]["queries"], result["environment"]["repeats"]) == (40, 2)


def test_the_pairs_are_one_to_one_and_mostly_the_order_of_the_student(matching: Any):
    scenery = matching.Scenery(matching.QUICK)
    _, pairs = matching.batched_queries(scenery, torch.device("cpu"))
    assert torch.equal(pairs.sort(-1).values, torch.arange(40).expand(2, 2, 40))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))  # the first random numbers of the scenery
    assert (pairs == order).double().mean() > 0.5  # not 1, because of the noise
    _, matched = matching.batched_targets(scenery, torch.device("cpu"))
    assert ((matched >= 0).sum(-1) == 5).all()


def test_the_costs_of_one_image_equal_the_costs_of_the_batch(matching: Any):
    scenery = matching.Scenery(matching.QUICK)
    costs = scenery.costs()
    assert costs.shape == (2, 2, 40, 40)
    torch.testing.assert_close(scenery.costs(1, 0), costs[1, 0])
    teacher_scores = scenery.teacher_logits.sigmoid()
    expected = query_costs(scenery.student_logits, teacher_scores, scenery.student_boxes, scenery.teacher_boxes)
    assert torch.equal(costs, expected)


def test_the_summary_of_three_rounds(matching: Any):
    rounds = [({"total": 2.0}, {"total": 6.0}), ({"total": 4.0}, {"total": 4.0}), ({"total": 1.0}, {"total": 9.0})]
    assert matching.summary(rounds) == {
        "batched": {"total_ms": 2.0},
        "one_by_one": {"total_ms": 6.0},
        "ratio": {"total": 3.0},
    }
