"""The controller of a method's weight: its rule, its measurements, and the runs that use it."""

import io
import json
import math
import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as processes
from rich.console import Console

from detdistill.engine.balance import PATIENCE, Balance, steered
from detdistill.engine.distillation import Distillation
from detdistill.engine.fit import fit
from detdistill.engine.schedule import Schedule
from detdistill.errors import UserError
from detdistill.types import TrainState
from tests.detectors.builders import scene
from tests.methods.pairs import built, pair

from .fakes import (
    DetachedMatch,
    FakeLoader,
    Match,
    assert_identical,
    checkpoint_state,
    log_rows,
    small_detector,
    train_config,
)


def train(
    out: Path,
    weight: float = 1.0,
    target: float | None = 0.5,
    loader: FakeLoader | None = None,
    console: Console | None = None,
    **changes: object,
) -> Distillation:
    """Train a small detector with `match`, balanced at every second step. Returns the distillation after the run.

    The run continues if `out` has a checkpoint. changes: fields of TrainConfig.
    """
    schedules = {"match": Schedule(balance=target)}
    distillation = Distillation(small_detector(), [Match(weight)], schedules, balance_every=2)
    fit(
        distillation,
        loader or FakeLoader(),
        teacher=small_detector(1),
        config=train_config(**{"log_every": 1, **changes}),
        out=out,
        resume=(out / "checkpoint").exists(),
        console=console or Console(quiet=True),
    )
    return distillation


def test_measuring_leaves_no_gradient_and_changes_no_weight(tmp_path: Path) -> None:
    train(tmp_path / "measured", target=None, log_gradients=True)
    train(tmp_path / "unmeasured", target=None)
    assert_identical(checkpoint_state(tmp_path / "measured"), checkpoint_state(tmp_path / "unmeasured"))
    distillation = Distillation(small_detector(), [Match()])
    batch, targets = FakeLoader().batch(0, 0)
    distillation(batch, targets, small_detector(1).observe(batch), measure=True)
    assert all(parameter.grad is None for parameter in distillation.parameters())


def test_every_term_is_logged_with_its_gradient_and_its_share(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    train(tmp_path, weight=5.0, target=None, log_gradients=True, console=console)
    terms = ["task_box", "task_class", "match_fine", "match_coarse"]
    for row in log_rows(tmp_path):
        assert {name for name in row if name.startswith("gradient_")} == {f"gradient_{term}" for term in terms}
        assert sum(row[f"share_{term}"] for term in terms) == pytest.approx(1)
        norms = [row[f"gradient_{term}"] for term in terms]
        assert row["share_match_fine"] == pytest.approx(norms[2] / sum(norms))
        # Each term of `match` reads another level, so this is the norm of their sum.
        match_norm = math.hypot(norms[2], norms[3])
        assert match_norm / (norms[0] + norms[1]) <= row["ratio_match"] < math.inf
    assert "balance_match" not in row
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "ratio_match" in printed
    assert "gradient_" not in printed  # printed lines stay short


def test_without_log_gradients_no_gradient_is_logged(tmp_path: Path) -> None:
    train(tmp_path, target=None)
    columns = {name for row in log_rows(tmp_path) for name in row}
    assert not [name for name in columns if name.startswith(("gradient", "share", "ratio", "balance"))]


@pytest.mark.parametrize(
    ("factor", "ratio", "target", "first", "expected"),
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
def test_the_next_factor_equals_values_by_hand(
    factor: float, ratio: float, target: float, first: bool, expected: float
) -> None:
    assert steered(factor, ratio, target, first) == pytest.approx(expected)


def test_the_factor_stays_if_a_norm_can_not_be_used() -> None:
    balance = Balance("match", 0.5)
    for method, task in ((math.inf, 1.0), (math.nan, 1.0), (1.0, 0.0), (1.0, math.nan)):
        balance.update(method, task, objects=True)
    balance.update(0.0, 1.0, objects=False)  # a batch without objects, before the first measurement
    assert (balance.factor.item(), balance.measurements.item()) == (1.0, 0)
    balance.update(2.0, 1.0, objects=True)
    balance.update(0.0, 1.0, objects=True)  # an earlier measurement succeeded
    assert (balance.factor.item(), balance.measurements.item()) == (0.25, 1)


@pytest.mark.parametrize("weight", [1e-2, 1.0, 1e2])
def test_the_ratio_meets_the_target_for_any_weight(tmp_path: Path, weight: float) -> None:
    train(tmp_path, weight, log_gradients=True)
    rows = log_rows(tmp_path)
    assert rows[0]["ratio_match"] == pytest.approx(0.5, rel=1e-4)
    assert all(0.2 < row["ratio_match"] < 1.2 for row in rows)
    assert rows[0]["balance_match"] == rows[1]["balance_match"] != rows[2]["balance_match"]  # every second step
    without_factor = [row["ratio_match"] / row["balance_match"] for row in rows]
    for step in (2, 4, 6):  # the logged factors follow the equation
        before, now = rows[step - 1]["balance_match"], rows[step]["balance_match"]
        assert now == pytest.approx(steered(before, without_factor[step], 0.5), rel=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
def test_two_methods_of_a_real_pair_meet_their_targets(autocast: bool) -> None:
    student, teacher = pair("gfl")
    student.train()  # with in-place ReLUs and norms
    methods = [built(name, student, teacher) for name in ("pkd", "crosskd")]
    schedules = {"pkd": Schedule(balance=0.2, warmup_steps=2), "crosskd": Schedule(balance=2.0)}
    distillation = Distillation(student, methods, schedules)
    batch, targets = scene()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with torch.no_grad():
            teacher_output = teacher.observe(batch, need=distillation.need)
        terms = distillation(batch, targets, teacher_output, TrainState(0), measure=True)
        # The factor of the warm-up is multiplied with the balance.
        assert distillation.ratios == pytest.approx({"ratio_pkd": 0.0, "ratio_crosskd": 2.0}, rel=0.02)
        distillation(batch, targets, teacher_output, TrainState(1), measure=True)
        assert distillation.ratios["ratio_pkd"] == pytest.approx(0.1, rel=0.02)
    torch.stack([term.float() for term in terms.values()]).sum().backward()


@pytest.mark.parametrize("method", [DetachedMatch(), Match(weight=0.0)])
def test_a_method_without_gradient_at_the_neck_stops_the_run(method: Match) -> None:
    batch, targets = FakeLoader().batch(0, 0)
    teacher_output = small_detector(1).observe(batch)
    distillation = Distillation(small_detector(), [method], {"match": Schedule(balance=0.5)})
    for step in range(PATIENCE - 1):  # one batch is not enough: it may have no pair of objects, or no positive
        distillation(batch, targets, teacher_output, TrainState(step))
    message = r"method match: its terms give the student's neck no gradient.*methods\.match\.balance"
    with pytest.raises(UserError, match=message):
        distillation(batch, targets, teacher_output, TrainState(PATIENCE))
    assert distillation.eval()(batch, targets, teacher_output)  # nothing is measured outside training


def test_the_first_measurement_is_attempted_at_every_step() -> None:
    batch, targets = FakeLoader().batch(0, 0)
    teacher_output = small_detector(1).observe(batch)
    method = Match()
    distillation = Distillation(small_detector(), [method], {"match": Schedule(balance=0.5)}, balance_every=10)
    balance = distillation.balances["match"]
    # The weight 0 at step 0 stands for a batch without objects.
    for step, weight, measurements in ((0, 0.0, 0), (1, 3.0, 1), (2, 3.0, 1), (10, 3.0, 2)):
        method.weight = weight
        distillation(batch, targets, teacher_output, TrainState(step), measure=True)
        assert balance.measurements == measurements
        assert step == 0 or distillation.ratios["ratio_match"] == pytest.approx(0.5, rel=1e-3)


def test_factors_continue_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    train(tmp_path / "whole", weight=30.0, log_gradients=True)
    train(tmp_path / "resumed", weight=30.0, log_gradients=True, max_steps=7)
    train(tmp_path / "resumed", weight=30.0, log_gradients=True)
    assert_identical(checkpoint_state(tmp_path / "resumed"), checkpoint_state(tmp_path / "whole"))
    assert log_rows(tmp_path / "resumed") == log_rows(tmp_path / "whole")
    saved = checkpoint_state(tmp_path / "whole")["distillation"]
    assert saved["balances.match.factor"] < 0.5
    assert saved["balances.match.measurements"] == 8


def train_one_of_two(rank: int, out: str, port: str) -> None:
    """Train as process `rank` of two: every second image of each batch. Writes the final factors and gradients."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    loader = FakeLoader(batches=4, batch_size=2, share=slice(rank, None, 2))
    distillation = train(Path(out), loader=loader, epochs=1, log_gradients=True)
    (Path(out) / f"{rank}.json").write_text(json.dumps([distillation.factors(), distillation.gradients]))
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_factor_of_one_process_with_both_images(tmp_path: Path) -> None:
    train(tmp_path / "single", loader=FakeLoader(batches=4, batch_size=2), epochs=1, log_gradients=True)
    (tmp_path / "pair").mkdir()
    processes.spawn(train_one_of_two, args=(str(tmp_path / "pair"), str(20000 + os.getpid() % 20000)), nprocs=2)
    first = (tmp_path / "pair" / "0.json").read_text()
    second = (tmp_path / "pair" / "1.json").read_text()
    assert first == second
    for pair_row, single_row in zip(log_rows(tmp_path / "pair"), log_rows(tmp_path / "single"), strict=True):
        assert pair_row == pytest.approx(single_row, rel=1e-3)
