"""The loop: exact resumption at any step, the teacher untouched, nothing hidden."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as processes
from rich.console import Console
from torch import Tensor, nn

from detdistill.engine.checkpoint import checkpoint_path
from detdistill.engine.device import find_device, forget_peak_memory, peak_memory
from detdistill.engine.fit import FitSummary, fit, step_seed
from detdistill.engine.watch import NotFiniteError
from detdistill.errors import UserError
from detdistill.types import Batch, Targets, TrainState

from .fakes import Distillation, Loader, config, distillation, send_later, teacher

QUIET = Console(quiet=True)
TIMES = ("images_per_second", "data_seconds")


def train(
    out: Path, whole: Distillation, loader: Loader | None = None, resume: bool = False, **changes: Any
) -> FitSummary:
    return fit(
        whole,
        loader or Loader(),
        teacher=teacher(),
        config=config(**changes),
        out=out,
        resume=resume,
        console=QUIET,
        fingerprint={"a": {"b": 1}},
    )


def state(out: Path) -> dict[str, Any]:
    saved = torch.load(checkpoint_path(out), weights_only=True)
    return {name: value for name, value in saved.items() if name not in ("seconds", "fingerprint")}


def log(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def same(one: Any, two: Any) -> None:
    torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    train(out, distillation())
    return out


@pytest.mark.parametrize("stop", [1, 5, 7, 14])  # first step, end of an epoch (5 steps), within one, one before the end
@pytest.mark.parametrize("spoil", [False, True])
def test_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    tmp_path: Path, uninterrupted: Path, stop: int, spoil: bool
) -> None:
    train(tmp_path, distillation(), Loader(spoil=spoil), max_steps=stop)
    assert state(tmp_path)["step"] == stop
    torch.rand(11)  # what an evaluation in between might draw
    fresh = distillation(seed=5)
    summary = train(tmp_path, fresh, Loader(spoil=spoil), resume=True)
    same(state(tmp_path), state(uninterrupted))
    assert log(tmp_path) == log(uninterrupted)
    same(
        fresh.student.state_dict(),
        {name[7:]: value for name, value in state(uninterrupted)["average"].items() if name != "n_averaged"},
    )
    assert (summary.steps, summary.epochs) == (15, 3.0)
    assert summary.images_per_second == pytest.approx(60 / summary.train_seconds)


@pytest.fixture
def keyboard() -> Iterator[None]:
    """Ctrl-C as a terminal gives it: a program that was begun in the background inherits a SIGINT that is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Killed(Loader):
    """A loader that dies before a given step."""

    def __init__(self, step: int, how: Any) -> None:
        super().__init__()
        self.left, self.how = step, how

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Batch, Targets]]:
        for pair in super().epoch(number, start):
            if self.left == 0:
                self.how()
            self.left -= 1
            yield pair


def crash() -> None:
    raise RuntimeError("power cut")


def test_steps_lost_to_a_crash_are_done_again(tmp_path: Path, uninterrupted: Path) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path, distillation(), Killed(13, crash), checkpoint_every=4)
    assert state(tmp_path)["step"] == 12
    train(tmp_path, distillation(), resume=True)
    same(state(tmp_path), state(uninterrupted))
    assert log(tmp_path) == log(uninterrupted)


@pytest.mark.usefixtures("keyboard")
def test_interrupt_while_reading_data_is_resumed_exactly(tmp_path: Path, uninterrupted: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, distillation(), Killed(8, lambda: signal.raise_signal(signal.SIGINT)))
    assert state(tmp_path)["step"] == 8
    train(tmp_path, distillation(), resume=True)
    same(state(tmp_path), state(uninterrupted))
    assert log(tmp_path) == log(uninterrupted)


@pytest.mark.usefixtures("keyboard")
def test_interrupt_within_a_step_waits_for_its_end(tmp_path: Path, uninterrupted: Path) -> None:
    whole = distillation()
    calls: list[int] = []

    def interrupt(module: nn.Module, arguments: tuple) -> None:
        calls.append(1)
        if len(calls) == 7:
            signal.raise_signal(signal.SIGINT)

    whole.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, whole)
    assert state(tmp_path)["step"] == 7
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(tmp_path, distillation(), resume=True)
    same(state(tmp_path), state(uninterrupted))


def test_the_run_depends_on_the_seed_and_on_nothing_drawn_before(tmp_path: Path, uninterrupted: Path) -> None:
    whole = distillation()
    torch.rand(100)
    train(tmp_path / "same", whole)
    same(state(tmp_path / "same")["distillation"], state(uninterrupted)["distillation"])
    train(tmp_path / "other", distillation(), seed=1)
    assert not torch.equal(state(tmp_path / "other")["distillation"]["student.head.weight"], whole.student.head.weight)
    assert len({step_seed(seed, step, process) for seed in range(4) for step in range(4) for process in range(4)}) == 64


def test_log_has_every_term_and_the_sum_is_plain(uninterrupted: Path) -> None:
    lines = [json.loads(line) for line in (uninterrupted / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 3, 6, 9, 12, 15]
    assert [line["epoch"] for line in lines] == [1, 1, 2, 2, 3, 3]
    for line in lines:
        assert line["total"] == pytest.approx(line["task_box"] + line["task_class"] + line["match_neck"])
        assert line["grad_norm"] > 0
        assert all(line[name] >= 0 for name in TIMES)
    assert lines[0]["lr"] == 0.01 / 4


def test_teacher_is_in_evaluation_without_gradients_and_in_no_checkpoint(tmp_path: Path) -> None:
    whole, taught = distillation(), teacher()
    before = {name: value.clone() for name, value in taught.state_dict().items()}
    taught.train()
    fit(whole, Loader(), teacher=taught, config=config(), out=tmp_path, console=QUIET)
    assert set(taught.seen) == {(False, False, whole.need)}
    assert len(taught.seen) == 15
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in taught.parameters())
    same(dict(taught.state_dict()), before)
    assert {name.split(".")[0] for name in state(tmp_path)["distillation"]} == {"student", "methods"}


def test_without_methods_the_teacher_is_left_out(tmp_path: Path) -> None:
    unasked = teacher()
    fit(
        distillation(methods=False),
        Loader(),
        teacher=unasked,
        config=config(max_steps=2),
        out=tmp_path / "a",
        console=QUIET,
    )
    fit(
        distillation(methods=False),
        Loader(),
        teacher=None,
        config=config(max_steps=2),
        out=tmp_path / "b",
        console=QUIET,
    )
    assert unasked.seen == []
    same(state(tmp_path / "a"), state(tmp_path / "b"))
    with pytest.raises(ValueError, match="need a teacher"):
        fit(distillation(), Loader(), teacher=None, config=config(), out=tmp_path / "c", console=QUIET)


def test_one_step_of_sgd_by_hand(tmp_path: Path) -> None:
    whole, other = distillation(methods=False, dropout=0.0), distillation(methods=False, dropout=0.0)
    settings = {
        "optimizer": "sgd",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "clip_norm": None,
        "ema": None,
        "max_steps": 1,
    }
    whole.student.head.weight.grad = torch.full_like(
        whole.student.head.weight, 1e3
    )  # a caller's, which is no part of the run
    train(tmp_path, whole, **settings)
    batch, targets = Loader().batch(0, 0)
    sum(other(batch, targets).values()).backward()
    for trained, start in zip(whole.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(trained, start - 0.01 * start.grad)
    train(tmp_path / "clipped", clipped := distillation(methods=False, dropout=0.0), **settings | {"clip_norm": 1e-3})
    moved = torch.cat(
        [(one - two).flatten() for one, two in zip(clipped.parameters(), other.parameters(), strict=True)]
    ).norm()
    assert moved.item() == pytest.approx(0.01 * 1e-3, rel=0.02)


def test_the_loss_falls_and_the_frozen_backbone_stays(tmp_path: Path) -> None:
    whole = distillation()
    before = {name: value.clone() for name, value in whole.student.backbone.state_dict().items()}
    train(tmp_path, whole, backbone_lr_factor=0.0, lr=0.05, epochs=10)
    assert log(tmp_path)[-1]["total"] < 0.5 * log(tmp_path)[0]["total"]
    same(dict(whole.student.backbone.state_dict()), before)


class Spoiled(Distillation):
    """One term becomes NaN at a step."""

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


def test_nan_stops_before_a_weight_has_met_it(tmp_path: Path) -> None:
    whole = distillation()
    whole.__class__ = Spoiled
    with pytest.raises(NotFiniteError, match=r"step 7: match_neck is nan, total is nan.*1_1_0\.jpg, 1_1_1\.jpg"):
        train(tmp_path, whole)
    assert all(parameter.isfinite().all() for parameter in whole.parameters())
    assert state(tmp_path)["step"] == 5
    assert [line["step"] for line in log(tmp_path)] == [1, 3, 6]


@pytest.mark.parametrize("every", [7, 2])  # a checkpoint is due after the bad step; the next step finds it
def test_on_a_gpu_a_nan_is_found_before_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    monkeypatch.setattr("detdistill.engine.watch._send", send_later)
    whole = distillation()
    whole.__class__ = Spoiled
    with pytest.raises(NotFiniteError, match="step 7: match_neck is nan"):
        train(tmp_path, whole, checkpoint_every=every, log_every=100)
    if every == 2:
        assert state(tmp_path)["step"] == 6
    else:
        assert not checkpoint_path(tmp_path).exists()


def test_another_recipe_is_refused_but_not_another_pace_of_logging(tmp_path: Path) -> None:
    train(tmp_path, distillation(), max_steps=2)
    with pytest.raises(UserError, match=r"train\.lr was 0\.01 and is 0\.02"):
        train(tmp_path, distillation(), resume=True, lr=0.02)
    with pytest.raises(UserError, match="steps an epoch was 5 and is 6"):
        train(tmp_path, distillation(), Loader(batches=6), resume=True)
    assert train(tmp_path, distillation(), resume=True, log_every=2, checkpoint_every=3, max_steps=4).steps == 4


def test_a_finished_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    first, second = distillation(), distillation(seed=3)
    train(tmp_path, first)
    summary = train(tmp_path, second, resume=True)
    assert summary.steps == 15
    same(dict(second.state_dict()), dict(first.state_dict()))


def test_a_loader_that_breaks_its_promise_is_told(tmp_path: Path) -> None:
    short = Loader(batches=3)
    short.epoch = lambda number, start=0: Loader(batches=2).epoch(number, start)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="promised 3 batches an epoch, and epoch 0 ended after 2"):
        train(tmp_path, distillation(), short)


def test_bf16_on_the_cpu_and_then_fp32_in_one_program(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []
    whole = distillation()
    whole.student.head.register_forward_hook(lambda module, arguments, output: seen.append(output.dtype))
    train(tmp_path / "bf16", whole, precision="bf16", max_steps=1)
    train(tmp_path / "fp32", whole, max_steps=1)
    assert seen == [torch.bfloat16, torch.float32]
    assert all(parameter.dtype == torch.float32 for parameter in whole.parameters())


def test_impossible_devices_and_precisions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--precision fp16 needs a GPU"):
        train(tmp_path, distillation(), precision="fp16")
    for name in ("gpu", "cuda:99", "meta"):
        with pytest.raises(UserError, match=f"--device {name}: "):
            find_device(name)


def one_of_two(rank: int, out: str, port: str) -> None:
    """A process of the run below: every second image of each batch."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    train(
        Path(out),
        distillation(norm=False, dropout=0.0),
        Loader(batches=2, batch_size=2, share=slice(rank, None, 2)),
        epochs=1,
    )
    torch.distributed.destroy_process_group()


def test_two_processes_of_one_image_equal_one_of_two(tmp_path: Path) -> None:
    alone = distillation(norm=False, dropout=0.0)
    train(tmp_path / "alone", alone, Loader(batches=2, batch_size=2), epochs=1)
    processes.spawn(one_of_two, args=(str(tmp_path / "pair"), str(20000 + os.getpid() % 20000)), nprocs=2)
    pair, single = state(tmp_path / "pair"), state(tmp_path / "alone")
    assert pair["images"] == single["images"] == 4
    torch.testing.assert_close(pair["distillation"], single["distillation"], rtol=1e-5, atol=1e-6)
    for one, two in zip(log(tmp_path / "pair"), log(tmp_path / "alone"), strict=True):
        assert one == pytest.approx(two, rel=1e-4)


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of resident memory can be reset on Linux alone"
)
def test_peak_memory_is_of_what_was_held_since_it_was_forgotten():
    cpu = torch.device("cpu")
    forget_peak_memory(cpu)
    before = peak_memory(cpu)
    torch.ones(2**25)  # 128 MiB, let go at once
    after = peak_memory(cpu)
    assert after - before > 100 * 2**20
    forget_peak_memory(cpu)
    assert peak_memory(cpu) < after - 100 * 2**20
