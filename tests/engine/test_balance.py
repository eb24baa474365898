"""Gradients at the neck: what they measure, what they leave alone, and the controller that keeps their ratio."""

import io
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as processes
from rich.console import Console

from detdistill.engine.balance import PATIENCE, Balance, steered
from detdistill.engine.checkpoint import checkpoint_path
from detdistill.engine.distillation import Distillation
from detdistill.engine.fit import fit
from detdistill.engine.gradients import neck_norms, shares
from detdistill.engine.schedule import Schedule
from detdistill.errors import UserError
from detdistill.types import TrainState
from tests.detectors.builders import scene
from tests.methods.pairs import built, pair

from .fakes import Blind, Loader, Match, config, host

TIMES = ("images_per_second", "data_seconds")


def train(
    out: Path,
    weight: float = 1.0,
    target: float | None = 0.5,
    loader: Loader | None = None,
    console: Console | None = None,
    **changes: Any,
) -> Distillation:
    """A run of the smallest host with `match` balanced at every second step."""
    whole = Distillation(host(), [Match(weight)], {"match": Schedule(balance=target)}, balance_every=2)
    settings, resume = config(**{"log_every": 1, **changes}), (out / "checkpoint").exists()
    console = console or Console(quiet=True)
    fit(whole, loader or Loader(), teacher=host(1), config=settings, out=out, resume=resume, console=console)
    return whole


def state(out: Path) -> dict[str, Any]:
    saved = torch.load(checkpoint_path(out), weights_only=True)
    return {name: value for name, value in saved.items() if name not in ("seconds", "fingerprint")}


def log(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def same(one: Any, two: Any) -> None:
    torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)


# Norms.


def test_norms_by_hand_at_any_scale() -> None:
    body = torch.zeros(1, 1, 2, 2, requires_grad=True)
    fine, coarse = body + 1, body[..., :1, :1] + 2
    parts = {"both": 3 * fine.sum() + 8 * coarse.sum(), "none": torch.ones(()), "aside": body.sum()}
    norms = neck_norms(parts, (fine, coarse))
    assert norms == {"both": pytest.approx(10.0), "none": 0.0, "aside": 0.0}  # sqrt(4 * 9 + 64)

    class Scaler:
        def scale(self, value: torch.Tensor) -> torch.Tensor:
            return value * 2.0**16

    assert neck_norms(parts, (fine, coarse), Scaler()) == norms
    parts["both"].backward()  # the graph was kept
    assert body.grad is not None


def test_shares_add_to_one_and_nothing_has_none() -> None:
    assert shares({"a": 3.0, "b": 1.0}) == {"a": 0.75, "b": 0.25}
    assert shares({"a": 0.0}) == {"a": 0.0}
    assert math.isnan(shares({"a": math.inf, "b": 1.0})["a"])  # the log writes null


def test_measuring_leaves_no_gradient_and_moves_no_bit(tmp_path: Path) -> None:
    train(tmp_path / "seen", target=None, log_gradients=True)
    train(tmp_path / "unseen", target=None)
    same(state(tmp_path / "seen"), state(tmp_path / "unseen"))
    whole, (batch, targets) = Distillation(host(), [Match()]), Loader().batch(0, 0)
    whole(batch, targets, host(1).observe(batch), measure=True)
    assert all(parameter.grad is None for parameter in whole.parameters())


def test_every_term_is_logged_with_its_gradient_and_its_share(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    train(tmp_path, weight=5.0, target=None, log_gradients=True, console=console)
    terms = ["task_box", "task_class", "match_fine", "match_coarse"]
    for line in log(tmp_path):
        assert {name for name in line if name.startswith("gradient_")} == {f"gradient_{term}" for term in terms}
        assert sum(line[f"share_{term}"] for term in terms) == pytest.approx(1)
        norms = [line[f"gradient_{term}"] for term in terms]
        assert line["share_match_fine"] == pytest.approx(norms[2] / sum(norms))
        whole = math.hypot(
            norms[2], norms[3]
        )  # each term reads a level of its own, so that this is the norm of their sum
        assert whole / (norms[0] + norms[1]) <= line["ratio_match"] < math.inf
    assert "balance_match" not in line
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "ratio_match" in shown
    assert "gradient_" not in shown  # a line for a person
    train(tmp_path / "off", target=None)
    assert not [
        name
        for line in log(tmp_path / "off")
        for name in line
        if name.startswith(("gradient", "share", "ratio", "balance"))
    ]


# The controller.


@pytest.mark.parametrize(
    ("factor", "ratio", "target", "first", "then"),
    [
        (1.0, 0.5, 0.5, False, 1.0),
        (1.0, 2.0, 1.0, False, 0.5**0.5),
        (3.0, 0.25, 0.75, False, 3.0),
        (1.0, 100.0, 1.0, False, 0.5),
        (1.0, 0.01, 1.0, False, 2.0),
        (1.0, 100.0, 1.0, True, 0.01),
        (1.0, 1e9, 1.0, True, 1e-4),
        (6000.0, 1e-9, 1.0, False, 1e4),
    ],
)
def test_the_rule_by_hand(factor: float, ratio: float, target: float, first: bool, then: float) -> None:
    assert steered(factor, ratio, target, first) == pytest.approx(then)


def test_what_can_not_be_measured_moves_nothing() -> None:
    balance = Balance("match", 0.5)
    for method, task in ((math.inf, 1.0), (math.nan, 1.0), (1.0, 0.0), (1.0, math.nan)):
        balance.update(method, task, objects=True)
    balance.update(0.0, 1.0, objects=False)  # a batch without objects, before anything was measured
    assert (balance.factor.item(), balance.measurements.item()) == (1.0, 0)
    balance.update(2.0, 1.0, objects=True)
    balance.update(0.0, 1.0, objects=True)  # it has reached the neck before
    assert (balance.factor.item(), balance.measurements.item()) == (0.25, 1)


@pytest.mark.parametrize("weight", [1e-2, 1.0, 1e2])
def test_the_ratio_meets_the_target_whatever_the_weight(tmp_path: Path, weight: float) -> None:
    train(tmp_path, weight, log_gradients=True)
    lines = log(tmp_path)
    assert lines[0]["ratio_match"] == pytest.approx(0.5, rel=1e-4)
    assert all(0.2 < line["ratio_match"] < 1.2 for line in lines)
    assert lines[0]["balance_match"] == lines[1]["balance_match"] != lines[2]["balance_match"]  # every second step
    without = [line["ratio_match"] / line["balance_match"] for line in lines]
    for step in (2, 4, 6):  # the equation, from what is logged
        now, before = lines[step]["balance_match"], lines[step - 1]["balance_match"]
        assert now == pytest.approx(steered(before, without[step], 0.5), rel=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
def test_two_methods_of_a_real_pair_meet_their_targets(autocast: bool) -> None:
    student, teacher = pair("gfl")
    student.train()  # in-place ReLUs, norms and all
    methods = [built(name, student, teacher) for name in ("pkd", "crosskd")]
    plans = {"pkd": Schedule(balance=0.2, warmup_steps=2), "crosskd": Schedule(balance=2.0)}
    whole = Distillation(student, methods, plans)
    batch, targets = scene()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with torch.no_grad():
            lesson = teacher.observe(batch, need=whole.need)
        terms = whole(batch, targets, lesson, TrainState(0), measure=True)
        assert whole.ratios == pytest.approx({"ratio_pkd": 0.0, "ratio_crosskd": 2.0}, rel=0.02)  # warm-up comes on top
        whole(batch, targets, lesson, TrainState(1), measure=True)
        assert whole.ratios["ratio_pkd"] == pytest.approx(0.1, rel=0.02)
    torch.stack([term.float() for term in terms.values()]).sum().backward()


def test_a_method_that_does_not_reach_the_neck_is_told() -> None:
    batch, targets = Loader().batch(0, 0)
    lesson = host(1).observe(batch)
    for method in (Blind(), Match(weight=0.0)):
        whole = Distillation(host(), [method], {"match": Schedule(balance=0.5)})
        for step in range(PATIENCE - 1):  # one batch proves nothing: it may have no pair of objects, or no positive
            whole(batch, targets, lesson, TrainState(step))
        with pytest.raises(
            UserError, match=r"method match: its terms give the student's neck no gradient.*methods\.match\.balance"
        ):
            whole(batch, targets, lesson, TrainState(PATIENCE))
    assert whole.eval()(batch, targets, lesson)  # nothing is measured outside training


def test_the_first_measurement_is_tried_for_at_every_step() -> None:
    batch, targets = Loader().batch(0, 0)
    lesson = host(1).observe(batch)
    method = Match()
    whole = Distillation(host(), [method], {"match": Schedule(balance=0.5)}, balance_every=10)
    balance = whole.balances["match"]
    for step, weight, measured in (
        (0, 0.0, 0),
        (1, 3.0, 1),
        (2, 3.0, 1),
        (10, 3.0, 2),
    ):  # silent at first, as on an empty batch
        method.weight = weight
        whole(batch, targets, lesson, TrainState(step), measure=True)
        assert balance.measurements == measured
        assert step == 0 or whole.ratios["ratio_match"] == pytest.approx(0.5, rel=1e-3)


def test_factors_go_on_from_a_checkpoint_to_the_bit(tmp_path: Path) -> None:
    train(tmp_path / "whole", weight=30.0, log_gradients=True)
    train(tmp_path / "parts", weight=30.0, log_gradients=True, max_steps=7)
    train(tmp_path / "parts", weight=30.0, log_gradients=True)
    same(state(tmp_path / "parts"), state(tmp_path / "whole"))
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    saved = state(tmp_path / "whole")["distillation"]
    assert saved["balances.match.factor"] < 0.5
    assert saved["balances.match.measurements"] == 8


def one_of_two(rank: int, out: str, port: str) -> None:
    """A process of the run below: every second image of each batch."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    whole = train(
        Path(out), loader=Loader(batches=4, batch_size=2, share=slice(rank, None, 2)), epochs=1, log_gradients=True
    )
    (Path(out) / f"{rank}.json").write_text(json.dumps([whole.factors(), whole.gradients]))
    torch.distributed.destroy_process_group()


def test_two_processes_keep_one_factor_that_of_one_with_both_images(tmp_path: Path) -> None:
    train(tmp_path / "alone", loader=Loader(batches=4, batch_size=2), epochs=1, log_gradients=True)
    (tmp_path / "pair").mkdir()
    processes.spawn(one_of_two, args=(str(tmp_path / "pair"), str(20000 + os.getpid() % 20000)), nprocs=2)
    first, second = ((tmp_path / "pair" / f"{rank}.json").read_text() for rank in range(2))
    assert first == second
    for one, two in zip(log(tmp_path / "pair"), log(tmp_path / "alone"), strict=True):
        assert one == pytest.approx(two, rel=1e-3)
