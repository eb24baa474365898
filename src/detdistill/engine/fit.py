"""The training loop, whole and visible."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detdistill.distributed import broadcast_from_main
from detdistill.engine.checkpoint import Training, load_checkpoint, save_checkpoint
from detdistill.engine.device import forget_peak_memory, open_accelerator, peak_memory
from detdistill.engine.interrupt import uninterrupted
from detdistill.engine.log import Log, Meter
from detdistill.engine.optim import build_optimizer, learning_rate, moving_average, rest_frozen, set_learning_rate
from detdistill.engine.progress import Progress
from detdistill.engine.watch import Watch
from detdistill.recipe import TrainConfig
from detdistill.types import Batch, Targets, TrainState

if TYPE_CHECKING:
    from detdistill.engine.distillation import Distillation

MAY_CHANGE = {
    "device",
    "workers",
    "max_steps",
    "log_every",
    "log_gradients",
    "checkpoint_every",
}  # in a run that is resumed


class Loader(Protocol):
    """Training data: `steps` batches an epoch; `epoch(number, start)` gives them from `start` on, always the same for the same number."""

    @property
    def steps(self) -> int: ...
    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Batch, Targets]]: ...


@dataclass(frozen=True)
class FitSummary:
    """What a run came to, over all its resumptions. epochs: begun ones count by their share. peak_memory_bytes: see `device.peak_memory`."""

    steps: int
    epochs: float
    train_seconds: float
    images_per_second: float
    peak_memory_bytes: int | None


def fit(
    distillation: "Distillation",
    loader: Loader,
    *,
    teacher: Any | None,
    config: TrainConfig,
    out: Path,
    resume: bool = False,
    console: Console | None = None,
    fingerprint: Mapping[str, Any] | None = None,
) -> FitSummary:
    """Train the student and the methods' own parts; log and checkpoint go into `out`. The student ends with the last weights (EMA where on).

    teacher: a Detector, never wrapped nor saved; left out where there are no methods. fingerprint: what else a resumption must share with
    the run, such as the recipe's model and data. Raises UserError on an impossible device, precision or resumption; NotFiniteError on a
    NaN; KeyboardInterrupt between two steps, after a checkpoint.
    """
    accelerator = open_accelerator(config)
    device, main = accelerator.device, accelerator.is_main_process
    console = (console or Console()) if main else Console(quiet=True)
    lecturer: Any = invite(teacher, device) if len(distillation.methods) else None

    student = cast(nn.Module, distillation.to(device).student)
    optimizer = accelerator.prepare_optimizer(build_optimizer(distillation, config))
    average = moving_average(student, config.ema) if config.ema else None
    distillation.scaler = accelerator.scaler
    training = Training(distillation, optimizer, average, accelerator.scaler)
    shared = {"train": config.model_dump(exclude=MAY_CHANGE), **(fingerprint or {})}
    shared |= {"steps an epoch": loader.steps, "processes": accelerator.num_processes}
    if resume:
        load_checkpoint(training, shared, out)

    model = spread(distillation, accelerator)
    optimizer.zero_grad()  # what a caller's own backward may have left
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    steps = config.epochs * loader.steps  # of the schedule
    last = min(steps, config.max_steps or steps)  # of this run
    every = config.checkpoint_every or loader.steps
    watch, meter = Watch(exempt=("grad_norm",) if accelerator.scaler else ()), Meter()
    clock = time.perf_counter() - training.seconds
    forget_peak_memory(device)

    def checkpoint() -> None:
        watch.settle()  # weights that have met a NaN are not saved
        training.seconds = time.perf_counter() - clock
        if main:
            save_checkpoint(training, shared, out)

    progress = Progress(
        console, start=training.step, last=last, epochs=config.epochs, per_epoch=loader.steps, every=config.log_every
    )
    with progress, Log(out if main else None, training.step) as log:
        try:
            while training.step < last:
                epoch, start = divmod(training.step, loader.steps)
                distillation.train()
                rest_frozen(distillation)
                if lecturer is not None:
                    lecturer.eval()
                for batch, targets in meter.timed(portion(loader, epoch, start, last)):
                    with uninterrupted():  # a step is done whole or not at all
                        set_seed(step_seed(config.seed, training.step, accelerator.process_index))
                        rate = learning_rate(training.step, steps, config)
                        set_learning_rate(optimizer, rate)
                        batch, targets = batch.to(device), targets.to(device)
                        state = TrainState(training.step, steps)
                        logged = (training.step + 1) % config.log_every == 0 or training.step + 1 in (1, steps)

                        lesson, need = None, distillation.need_at(state)
                        if need is not None:  # else every method is silent, and the teacher rests
                            with torch.no_grad(), accelerator.autocast():
                                lesson = lecturer.observe(batch, need=need)
                        with accelerator.autocast():
                            terms = model(
                                batch,
                                targets,
                                teacher_output=lesson,
                                state=state,
                                measure=logged and config.log_gradients,
                            )
                        total = add(terms)
                        accelerator.backward(total)
                        norm = accelerator.clip_grad_norm_(parameters, config.clip_norm or math.inf)
                        watch.look(training.step + 1, batch.names, {**terms, "total": total, "grad_norm": norm})
                        optimizer.step()
                        optimizer.zero_grad()
                        if average is not None and not optimizer.step_was_skipped:
                            average.update_parameters(student)

                        training.step += 1
                        training.images += len(batch) * accelerator.num_processes
                        meter.images += len(batch) * accelerator.num_processes
                        row = None
                        if logged:
                            values = (
                                over_processes(watch.settle(), accelerator)
                                | distillation.factors()
                                | distillation.ratios
                            )
                            row = {"step": training.step, "epoch": epoch + 1, "lr": rate, **values, **meter.row()}
                            log.write(row | distillation.gradients)
                        progress.advance(training.step, row)
                        if training.step % every == 0 or training.step == last:
                            checkpoint()
        except KeyboardInterrupt:
            checkpoint()
            console.print(f"stopped after step {training.step}; --resume goes on from there", highlight=False)
            raise
    accelerator.wait_for_everyone()  # nobody reads what the first process is still writing
    if average is not None:
        student.load_state_dict(average.module.state_dict())
    if (
        accelerator.num_processes > 1
    ):  # norm statistics are each process's own; what is measured is what the first one saves
        for buffer in student.buffers():
            broadcast_from_main(buffer)
    return summarize(training, loader.steps, device)


def portion(loader: Loader, epoch: int, start: int, last: int) -> Iterator[tuple[Batch, Targets]]:
    """An epoch's batches from `start` on, up to step `last` of the run. Raises ValueError where the loader has fewer than it promised."""
    wanted = min(loader.steps, last - epoch * loader.steps) - start
    given = 0
    for pair in islice(loader.epoch(epoch, start), wanted):
        given += 1
        yield pair
    if given < wanted:
        raise ValueError(
            f"the loader promised {loader.steps} batches an epoch, and epoch {epoch} ended after {start + given}"
        )


def invite(teacher: Any | None, device: torch.device) -> Any:
    """The teacher on its device, asking for no gradients. Gradients still flow through it into the student."""
    if teacher is None:
        raise ValueError("the methods need a teacher")
    return teacher.to(device).requires_grad_(False)


def spread(distillation: nn.Module, accelerator: Accelerator) -> nn.Module:
    """One replica a process, their gradients averaged; the module itself where there is one process.

    What a loss reaches may hang on the data (a level without proposals), and a two-stage DETR has parameters that it never reaches. So
    the unused ones are looked for every step: a short walk over the graph, against a run that dies at step 40,000.
    """
    if accelerator.num_processes == 1:
        return distillation
    devices = None if accelerator.device.type == "cpu" else [accelerator.device]
    return DistributedDataParallel(distillation, device_ids=devices, find_unused_parameters=True)


def step_seed(seed: int, step: int, process: int) -> int:
    """The seed of one step: dropout and sampling depend on it alone. So a resumed run draws what an uninterrupted one would have,
    whatever the loader or an evaluation drew in between; there are no random states to save."""
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1)[0])


def add(terms: Mapping[str, Tensor]) -> Tensor:
    """The objective: the plain sum, in single precision."""
    return torch.stack([term.float() for term in terms.values()]).sum()


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
