"""The training loop: steps, log, checkpoints, interruption and resumption."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detdistill.distributed import broadcast_from_main
from detdistill.engine.advice import Once, about_waiting, about_warmup
from detdistill.engine.checkpoint import Training, flat, load_checkpoint, save_checkpoint
from detdistill.engine.device import open_accelerator, peak_memory, reset_peak_memory
from detdistill.engine.effect import EffectCheck
from detdistill.engine.gradients import sum_of
from detdistill.engine.interrupt import uninterrupted
from detdistill.engine.log import Log, Meter
from detdistill.engine.optim import build_optimizer, learning_rate, moving_average, rest_frozen, set_learning_rate
from detdistill.engine.progress import Progress
from detdistill.engine.resources import cpu_count, worker_count
from detdistill.engine.step import Step
from detdistill.engine.trackers import Trackers
from detdistill.engine.watch import Watch
from detdistill.recipe import TrainConfig
from detdistill.types import Batch, Detector, Targets, TrainState

if TYPE_CHECKING:
    from detdistill.engine.distillation import Distillation

MAY_CHANGE = {"device", "workers", "max_steps", "log_every", "log_gradients", "checkpoint_every", "trackers"}
"""Fields of TrainConfig that may differ when a run is resumed."""


class Loader(Protocol):
    """Training data with `steps` batches per epoch.

    `epoch(number, start)` yields the batches of an epoch from `start` on, always the same ones for the same number.
    """

    @property
    def steps(self) -> int: ...
    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Batch, Targets]]: ...


@dataclass(frozen=True)
class FitSummary:
    """Numbers of a run, over all its resumptions.

    epochs: number of epochs; the last one may be a fraction. peak_memory_bytes: see `device.peak_memory`.
    """

    steps: int
    epochs: float
    train_seconds: float
    images_per_second: float
    peak_memory_bytes: int | None


def fit(
    distillation: "Distillation",
    loader: Loader,
    *,
    teacher: Detector | None,
    config: TrainConfig,
    out: Path,
    resume: bool = False,
    console: Console | None = None,
    fingerprint: Mapping[str, Any] | None = None,
) -> FitSummary:
    """Train the student and the methods' own parameters. The student ends with its last weights, or with their moving
    average.

    Log and checkpoint are written to `out`. teacher: None if there are no methods; it is neither wrapped nor saved.
    fingerprint: further settings that a resumed run must share with this one, such as the recipe's model and data.
    Raises UserError for an impossible device, precision or resumption; ValueError if there are methods but no teacher,
    or if the loader ends too early; NotFiniteError for NaN or infinity; KeyboardInterrupt between two steps, after a
    checkpoint.
    """
    accelerator = open_accelerator(config)
    device, main = accelerator.device, accelerator.is_main_process
    console = (console or Console()) if main else Console(quiet=True)
    frozen_teacher = freeze(teacher, device) if len(distillation.methods) else None

    student = cast(nn.Module, distillation.to(device).student)
    optimizer = accelerator.prepare_optimizer(build_optimizer(distillation, config))
    average = moving_average(student, config.ema) if config.ema else None
    distillation.scaler = accelerator.scaler
    training = Training(distillation, optimizer, average, accelerator.scaler)
    settings = {"train": config.model_dump(exclude=MAY_CHANGE), **(fingerprint or {})}
    settings |= {"steps an epoch": loader.steps, "processes": accelerator.num_processes}
    if resume:
        load_checkpoint(training, settings, out)

    effect = EffectCheck(frozenset(distillation.balances))
    step = Step(distillation, wrap_ddp(distillation, accelerator), frozen_teacher, accelerator, config)
    optimizer.zero_grad()  # a backward pass of the caller may have left gradients
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    schedule_steps = config.epochs * loader.steps
    last = min(schedule_steps, config.max_steps or schedule_steps)
    checkpoint_every = config.checkpoint_every or loader.steps
    begin = training.step
    watch, meter = Watch(exempt=("grad_norm",) if accelerator.scaler else ()), Meter()
    clock = time.perf_counter() - training.seconds
    reset_peak_memory(device)

    def checkpoint() -> None:
        watch.settle()  # raises if a value was NaN, so that weights with a NaN are not saved
        training.seconds = time.perf_counter() - clock
        if main:
            save_checkpoint(training, settings, out)

    progress = Progress(
        console,
        start=training.step,
        last=last,
        epochs=config.epochs,
        per_epoch=loader.steps,
        every=config.log_every,
    )
    keep_last = is_logged(training.step, schedule_steps, config.log_every)
    tell = Once(console)
    tell("warm-up", about_warmup(last, config))
    log_folder = out if main else None
    with (
        progress,
        Log(log_folder, training.step, keep_last) as log,
        Trackers(config.trackers, log_folder, training.step, flat(settings)) as trackers,
    ):
        try:
            while training.step < last:
                epoch, start = divmod(training.step, loader.steps)
                distillation.train()
                rest_frozen(distillation)
                if frozen_teacher is not None:
                    frozen_teacher.eval()
                for batch, targets in meter.timed(portion(loader, epoch, start, last)):
                    with uninterrupted():  # a step is never interrupted in the middle
                        rate = learning_rate(training.step, schedule_steps, config)
                        set_learning_rate(optimizer, rate)
                        batch, targets = batch.to(device), targets.to(device)
                        number = training.step + 1
                        logged = number == last or is_logged(number, schedule_steps, config.log_every)
                        state = TrainState(training.step, schedule_steps)
                        is_checked = effect.looks(number) and len(distillation.methods) > 0
                        measure = is_checked or (logged and config.log_gradients)
                        terms = step.backward(batch, targets, state, measure)
                        if is_checked:
                            for line in effect.add(number, distillation.ratios):
                                console.print(line, highlight=False, soft_wrap=True)
                            if not config.log_gradients:
                                distillation.ratios, distillation.gradients = {}, {}  # not for the log
                        norm = accelerator.clip_grad_norm_(parameters, config.clip_norm or math.inf)
                        watch.look(number, batch.names, {**terms, "total": sum_of(terms), "grad_norm": norm})
                        optimizer.step()
                        optimizer.zero_grad()
                        if average is not None and not optimizer.step_was_skipped:
                            average.update_parameters(student)

                        training.step += 1
                        training.images += len(batch) * accelerator.num_processes
                        meter.images += len(batch) * accelerator.num_processes
                        row = None
                        if logged:
                            values = over_processes(watch.settle(), accelerator)
                            values |= distillation.factors() | distillation.ratios
                            row = {"step": training.step, "epoch": epoch + 1, "lr": rate, **values, **meter.row()}
                            log.write(row | distillation.gradients)
                            trackers.log(row | distillation.gradients, training.step, "train")
                            if number > begin + 1:  # the first row counts the start of the workers
                                tell("waiting", about_waiting(meter.share, worker_count(config), cpu_count()))
                        progress.advance(training.step, row)
                        if training.step % checkpoint_every == 0 or training.step == last:
                            checkpoint()
        except KeyboardInterrupt:
            checkpoint()
            console.print(f"stopped after step {training.step}; continue with --resume", highlight=False)
            raise
    accelerator.wait_for_everyone()  # no process reads what the main process is still writing
    if average is not None:
        student.load_state_dict(average.module.state_dict())
    if accelerator.num_processes > 1:
        # Norm statistics differ between processes. All processes take those of the main process, which saves them.
        for buffer in student.buffers():
            broadcast_from_main(buffer)
    return summarize(training, loader.steps, device)


def portion(loader: Loader, epoch: int, start: int, last: int) -> Iterator[tuple[Batch, Targets]]:
    """The batches of an epoch from `start` on, up to step `last` of the run.

    Raises ValueError if the loader yields fewer batches than its `steps`.
    """
    expected = min(loader.steps, last - epoch * loader.steps) - start
    count = 0
    for pair in islice(loader.epoch(epoch, start), expected):
        count += 1
        yield pair
    if count < expected:
        raise ValueError(
            f"the loader has {loader.steps} steps per epoch, but epoch {epoch} ended after {start + count}"
        )


def is_logged(number: int, steps: int, every: int) -> bool:
    """True if step `number`, from 1, of a schedule of `steps` steps is logged in a run of any length."""
    return number % every == 0 or number in (1, steps)


def freeze(teacher: Detector | None, device: torch.device) -> Detector:
    """Move the teacher to the device and freeze its parameters. Gradients still flow through it into the student.

    Raises ValueError if the teacher is None.
    """
    if teacher is None:
        raise ValueError("the methods need a teacher")
    return teacher.to(device).requires_grad_(False)


def wrap_ddp(distillation: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The module with gradients averaged over the processes; the module itself if there is only one process.

    Which parameters a loss reaches can depend on the data (a level without proposals), and a two-stage DETR has
    parameters that no loss reaches. So DistributedDataParallel looks for unused parameters in every step. This costs
    one traversal of the graph; without it, a run could fail after many steps.
    """
    if accelerator.num_processes == 1:
        return distillation
    devices = None if accelerator.device.type == "cpu" else [accelerator.device]
    return DistributedDataParallel(distillation, device_ids=devices, find_unused_parameters=True)


def over_processes(values: Mapping[str, float], accelerator: Accelerator) -> dict[str, float]:
    """The mean of every value over the processes."""
    if accelerator.num_processes == 1:
        return dict(values)
    mean = accelerator.reduce(torch.tensor(list(values.values()), device=accelerator.device), "mean")
    return dict(zip(values, mean.tolist(), strict=True))


def summarize(training: Training, per_epoch: int, device: torch.device) -> FitSummary:
    """The summary of a run at its end."""
    speed = training.images / training.seconds if training.seconds else 0.0
    return FitSummary(training.step, training.step / per_epoch, training.seconds, speed, peak_memory(device))
