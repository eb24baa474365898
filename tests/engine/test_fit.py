"""The training loop: resumption at any step, the frozen teacher, and the checks of every step."""

import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as processes
from rich.console import Console
from torch import Tensor, nn

from detdistill.engine.checkpoint import checkpoint_path
from detdistill.engine.distillation import Distillation
from detdistill.engine.fit import FitSummary, fit
from detdistill.engine.log import Meter
from detdistill.engine.schedule import Schedule
from detdistill.engine.step import step_seed
from detdistill.engine.watch import NotFiniteError
from detdistill.errors import UserError
from detdistill.types import Batch, Targets, TrainState

from .fakes import (
    TIMES,
    FakeDistillation,
    FakeLoader,
    Match,
    assert_identical,
    checkpoint_state,
    fake_distillation,
    fake_teacher,
    log_rows,
    send_later,
    small_detector,
    train_config,
)

QUIET = Console(quiet=True)


def train(
    out: Path, distillation: FakeDistillation, loader: FakeLoader | None = None, resume: bool = False, **changes: Any
) -> FitSummary:
    """Train with the fake teacher. changes: fields of TrainConfig."""
    return fit(
        distillation,
        loader or FakeLoader(),
        teacher=fake_teacher(),
        config=train_config(**changes),
        out=out,
        resume=resume,
        console=QUIET,
        fingerprint={"a": {"b": 1}},
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 15 steps. Tests must not modify it."""
    out = tmp_path_factory.mktemp("uninterrupted")
    train(out, fake_distillation())
    return out


# Resumption.


# The first step, the end of an epoch of 5 steps, a step within an epoch, and the last step but one.
@pytest.mark.parametrize("stop", [1, 5, 7, 14])
@pytest.mark.parametrize("draws_globally", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_run_bit_for_bit(
    tmp_path: Path, uninterrupted: Path, stop: int, draws_globally: bool
) -> None:
    train(tmp_path, fake_distillation(), FakeLoader(draws_globally=draws_globally), max_steps=stop)
    assert checkpoint_state(tmp_path)["step"] == stop
    torch.rand(11)  # an evaluation in between may draw random numbers
    resumed = fake_distillation(seed=5)
    summary = train(tmp_path, resumed, FakeLoader(draws_globally=draws_globally), resume=True)
    assert_identical(checkpoint_state(tmp_path), checkpoint_state(uninterrupted))
    assert log_rows(tmp_path) == log_rows(uninterrupted)
    average = checkpoint_state(uninterrupted)["average"]
    expected = {name.removeprefix("module."): value for name, value in average.items() if name != "n_averaged"}
    assert_identical(resumed.student.state_dict(), expected)
    assert (summary.steps, summary.epochs) == (15, 3.0)
    assert summary.images_per_second == pytest.approx(60 / summary.train_seconds)


class StoppingLoader(FakeLoader):
    """A loader that calls `stop` before it yields the batch of step `step`."""

    def __init__(self, step: int, stop: Callable[[], None]) -> None:
        super().__init__()
        self.left = step
        self.stop = stop

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Batch, Targets]]:
        for pair in super().epoch(number, start):
            if self.left == 0:
                self.stop()
            self.left -= 1
            yield pair


def fail() -> None:
    raise RuntimeError("power cut")


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def default_sigint() -> Iterator[None]:
    """The SIGINT handler of a program in a terminal. A program that was started in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_steps_after_the_last_checkpoint_are_repeated(tmp_path: Path, uninterrupted: Path) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path, fake_distillation(), StoppingLoader(13, fail), checkpoint_every=4)
    assert checkpoint_state(tmp_path)["step"] == 12
    train(tmp_path, fake_distillation(), resume=True)
    assert_identical(checkpoint_state(tmp_path), checkpoint_state(uninterrupted))
    assert log_rows(tmp_path) == log_rows(uninterrupted)


@pytest.mark.usefixtures("default_sigint")
def test_an_interrupt_between_steps_writes_a_checkpoint(tmp_path: Path, uninterrupted: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, fake_distillation(), StoppingLoader(8, interrupt))
    assert checkpoint_state(tmp_path)["step"] == 8
    train(tmp_path, fake_distillation(), resume=True)
    assert_identical(checkpoint_state(tmp_path), checkpoint_state(uninterrupted))
    assert log_rows(tmp_path) == log_rows(uninterrupted)


@pytest.mark.usefixtures("default_sigint")
def test_an_interrupt_within_a_step_waits_for_its_end(tmp_path: Path, uninterrupted: Path) -> None:
    distillation = fake_distillation()
    calls: list[int] = []

    def interrupt_seventh_step(module: nn.Module, arguments: tuple) -> None:
        calls.append(1)
        if len(calls) == 7:
            interrupt()

    distillation.register_forward_pre_hook(interrupt_seventh_step)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, distillation)
    assert checkpoint_state(tmp_path)["step"] == 7
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(tmp_path, fake_distillation(), resume=True)
    assert_identical(checkpoint_state(tmp_path), checkpoint_state(uninterrupted))


def test_other_settings_are_refused_except_the_pace_of_logs_and_checkpoints(tmp_path: Path) -> None:
    train(tmp_path, fake_distillation(), max_steps=2)
    with pytest.raises(UserError, match=r"train\.lr was 0\.01 and is 0\.02"):
        train(tmp_path, fake_distillation(), resume=True, lr=0.02)
    with pytest.raises(UserError, match="steps an epoch was 5 and is 6"):
        train(tmp_path, fake_distillation(), FakeLoader(batches=6), resume=True)
    summary = train(tmp_path, fake_distillation(), resume=True, log_every=2, checkpoint_every=3, max_steps=4)
    assert summary.steps == 4


def test_resuming_a_finished_run_restores_its_weights(tmp_path: Path) -> None:
    trained, restored = fake_distillation(), fake_distillation(seed=3)
    train(tmp_path, trained)
    summary = train(tmp_path, restored, resume=True)
    assert summary.steps == 15
    assert_identical(dict(restored.state_dict()), dict(trained.state_dict()))


# One run.


def test_the_run_depends_on_the_seed_and_on_no_earlier_random_draw(tmp_path: Path, uninterrupted: Path) -> None:
    distillation = fake_distillation()
    torch.rand(100)
    train(tmp_path / "same", distillation)
    same = checkpoint_state(tmp_path / "same")["distillation"]
    assert_identical(same, checkpoint_state(uninterrupted)["distillation"])
    train(tmp_path / "different", fake_distillation(), seed=1)
    different = checkpoint_state(tmp_path / "different")["distillation"]
    assert not torch.equal(different["student.head.weight"], distillation.student.head.weight)


def test_every_step_of_every_process_has_its_own_seed() -> None:
    seeds = {step_seed(seed, step, process) for seed in range(4) for step in range(4) for process in range(4)}
    assert len(seeds) == 64


def test_the_log_holds_every_term_and_their_plain_sum(uninterrupted: Path) -> None:
    rows = log_rows(uninterrupted)
    assert [row["step"] for row in rows] == [1, 3, 6, 9, 12, 15]
    assert [row["epoch"] for row in rows] == [1, 1, 2, 2, 3, 3]
    for row in rows:
        assert row["total"] == pytest.approx(row["task_box"] + row["task_class"] + row["match_neck"])
        assert row["grad_norm"] > 0
    assert rows[0]["lr"] == 0.01 / 4
    for line in (uninterrupted / "log.jsonl").read_text().splitlines():
        assert all(json.loads(line)[name] >= 0 for name in TIMES)


def test_the_last_step_before_the_limit_is_logged_and_leaves_no_line_after_a_resumption(
    tmp_path: Path, uninterrupted: Path
) -> None:
    train(tmp_path, fake_distillation(), max_steps=7)
    assert [row["step"] for row in log_rows(tmp_path)] == [1, 3, 6, 7]
    train(tmp_path, fake_distillation(), max_steps=8, resume=True)
    assert [row["step"] for row in log_rows(tmp_path)] == [1, 3, 6, 8]
    train(tmp_path, fake_distillation(), max_steps=9, resume=True)
    assert log_rows(tmp_path) == log_rows(uninterrupted)[:4]
    train(tmp_path, fake_distillation(), resume=True)
    assert log_rows(tmp_path) == log_rows(uninterrupted)


def test_the_teacher_is_in_evaluation_mode_without_gradients_and_in_no_checkpoint(tmp_path: Path) -> None:
    distillation, teacher = fake_distillation(), fake_teacher()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    teacher.train()
    fit(distillation, FakeLoader(), teacher=teacher, config=train_config(), out=tmp_path, console=QUIET)
    assert set(teacher.calls) == {(False, False, distillation.need)}
    assert len(teacher.calls) == 15
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert_identical(dict(teacher.state_dict()), before)
    assert {name.split(".")[0] for name in checkpoint_state(tmp_path)["distillation"]} == {"student", "methods"}


def test_without_methods_the_teacher_is_not_used(tmp_path: Path) -> None:
    config = train_config(max_steps=2)
    teacher = fake_teacher()
    for name, optional_teacher in (("with", teacher), ("without", None)):
        plain = fake_distillation(has_method=False)
        fit(plain, FakeLoader(), teacher=optional_teacher, config=config, out=tmp_path / name, console=QUIET)
    assert teacher.calls == []
    assert_identical(checkpoint_state(tmp_path / "with"), checkpoint_state(tmp_path / "without"))


def test_methods_without_a_teacher_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="need a teacher"):
        fit(fake_distillation(), FakeLoader(), teacher=None, config=train_config(), out=tmp_path, console=QUIET)


def test_the_teacher_is_not_used_after_all_methods_have_stopped(tmp_path: Path) -> None:
    teacher = small_detector(1)
    distillation = Distillation(small_detector(), [Match()], {"match": Schedule(stop=0.5)})
    config = train_config(log_every=1)
    fit(distillation, FakeLoader(), teacher=teacher, config=config, out=tmp_path, console=QUIET)
    is_distilled = ["match_fine" in row for row in log_rows(tmp_path)]
    assert is_distilled == [True] * 8 + [False] * 7  # 7 / 15 < 0.5 <= 8 / 15
    assert len(teacher.needs) == 8


def test_one_step_of_sgd_equals_the_step_by_hand(tmp_path: Path) -> None:
    trained = fake_distillation(has_method=False, dropout=0.0)
    by_hand = fake_distillation(has_method=False, dropout=0.0)
    plain_sgd = {"optimizer": "sgd", "warmup_steps": 0, "weight_decay": 0.0, "ema": None, "max_steps": 1}
    head = trained.student.head
    head.weight.grad = torch.full_like(head.weight, 1e3)  # of the caller; the run must not use it
    train(tmp_path, trained, clip_norm=None, **plain_sgd)
    batch, targets = FakeLoader().batch(0, 0)
    sum(by_hand(batch, targets).values()).backward()
    for parameter, start in zip(trained.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(parameter, start - 0.01 * start.grad)
    clipped = fake_distillation(has_method=False, dropout=0.0)
    train(tmp_path / "clipped", clipped, clip_norm=1e-3, **plain_sgd)
    pairs = zip(clipped.parameters(), by_hand.parameters(), strict=True)
    change = torch.cat([(parameter - start).flatten() for parameter, start in pairs])
    assert change.norm().item() == pytest.approx(0.01 * 1e-3, rel=0.02)


def test_the_loss_falls_and_a_frozen_backbone_stays(tmp_path: Path) -> None:
    distillation = fake_distillation()
    backbone = distillation.student.backbone
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    train(tmp_path, distillation, backbone_lr_factor=0.0, lr=0.05, epochs=10)
    rows = log_rows(tmp_path)
    assert rows[-1]["total"] < 0.5 * rows[0]["total"]
    assert_identical(dict(backbone.state_dict()), before)


def test_a_loader_with_fewer_batches_than_its_steps_is_refused(tmp_path: Path) -> None:
    loader = FakeLoader(batches=3)
    loader.epoch = lambda number, start=0: FakeLoader(batches=2).epoch(number, start)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="the loader has 3 steps per epoch, but epoch 0 ended after 2"):
        train(tmp_path, fake_distillation(), loader)


def test_one_program_can_train_in_bf16_and_then_in_fp32(tmp_path: Path) -> None:
    dtypes: list[torch.dtype] = []
    distillation = fake_distillation()
    distillation.student.head.register_forward_hook(lambda module, arguments, output: dtypes.append(output.dtype))
    train(tmp_path / "bf16", distillation, precision="bf16", max_steps=1)
    train(tmp_path / "fp32", distillation, max_steps=1)
    assert dtypes == [torch.bfloat16, torch.float32]
    assert all(parameter.dtype == torch.float32 for parameter in distillation.parameters())


def test_an_impossible_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--precision fp16 needs a GPU"):
        train(tmp_path, fake_distillation(), precision="fp16")


# Warnings.


@pytest.mark.parametrize(("share", "warnings"), [(0.5, 1), (0.1, 0)])
def test_a_run_that_waits_for_its_images_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, warnings: int
) -> None:
    monkeypatch.setattr(Meter, "share", property(lambda meter: share, lambda meter, value: None), raising=False)
    console = Console(file=io.StringIO(), width=400)
    config = train_config(workers=0, warmup_steps=0)
    fit(fake_distillation(), FakeLoader(), teacher=fake_teacher(), config=config, out=tmp_path, console=console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert printed.count("warning: training waits for images 50% of the time, with no worker processes") == warnings
    assert "warm-up" not in printed


def test_a_warm_up_longer_than_the_run_is_told_once(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=400)
    config = train_config(warmup_steps=9, max_steps=5)
    fit(fake_distillation(), FakeLoader(), teacher=fake_teacher(), config=config, out=tmp_path, console=console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert printed.count("warning: the warm-up of 9 steps is not shorter than the run of 5 steps") == 1


# NaN.


class DistillationWithNaN(FakeDistillation):
    """The term of the method is NaN at step 6, counted from 0."""

    def forward(
        self,
        batch: Batch,
        targets: Targets,
        teacher_output: Tensor | None = None,
        state: TrainState = TrainState(),
        measure: bool = False,
    ) -> dict[str, Tensor]:
        terms = super().forward(batch, targets, teacher_output, state, measure)
        return {**terms, "match_neck": terms["match_neck"] * (float("nan") if state.step == 6 else 1.0)}


def distillation_with_nan() -> FakeDistillation:
    """A DistillationWithNaN with the weights of `fake_distillation`."""
    distillation = fake_distillation()
    distillation.__class__ = DistillationWithNaN
    return distillation


def test_a_nan_stops_the_run_before_it_reaches_a_weight(tmp_path: Path) -> None:
    distillation = distillation_with_nan()
    with pytest.raises(NotFiniteError, match=r"step 7: match_neck is nan, total is nan.*1_1_0\.jpg, 1_1_1\.jpg"):
        train(tmp_path, distillation)
    assert all(parameter.isfinite().all() for parameter in distillation.parameters())
    assert checkpoint_state(tmp_path)["step"] == 5
    assert [row["step"] for row in log_rows(tmp_path)] == [1, 3, 6]


# With 7, a checkpoint is due right after the bad step. With 2, the next step reads the NaN.
@pytest.mark.parametrize("every", [7, 2])
def test_on_a_gpu_a_nan_is_read_before_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    monkeypatch.setattr("detdistill.engine.watch._send", send_later)
    with pytest.raises(NotFiniteError, match="step 7: match_neck is nan"):
        train(tmp_path, distillation_with_nan(), checkpoint_every=every, log_every=100)
    if every == 2:
        assert checkpoint_state(tmp_path)["step"] == 6
    else:
        assert not checkpoint_path(tmp_path).exists()


# Two processes.


def train_one_of_two(rank: int, out: str, port: str, accumulate: int) -> None:
    """Train as process `rank` of two: every second image of each batch."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    loader = FakeLoader(batches=2, share=slice(rank, None, 2))
    train(Path(out), fake_distillation(norm=False, dropout=0.0), loader, epochs=1, accumulate=accumulate)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_with_two_images_each_equal_one_process_with_four(tmp_path: Path, accumulate: int) -> None:
    single = fake_distillation(norm=False, dropout=0.0)
    train(tmp_path / "single", single, FakeLoader(batches=2), epochs=1)
    arguments = (str(tmp_path / "pair"), str(20000 + os.getpid() % 20000 + accumulate), accumulate)
    processes.spawn(train_one_of_two, args=arguments, nprocs=2)
    pair_state, single_state = checkpoint_state(tmp_path / "pair"), checkpoint_state(tmp_path / "single")
    assert pair_state["images"] == single_state["images"] == 8
    torch.testing.assert_close(pair_state["distillation"], single_state["distillation"], rtol=1e-5, atol=1e-6)
    for pair_row, single_row in zip(log_rows(tmp_path / "pair"), log_rows(tmp_path / "single"), strict=True):
        assert pair_row == pytest.approx(single_row, rel=1e-4)
