"""What the parts of a training step cost on this machine: seconds and bytes, measured with a batch of the run.

A method is measured alone, on outputs of student and teacher that are computed once: its forward pass, and its backward
pass down to the student's output. The rest of the backward pass is part of the student's own step.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn

from detdistill.engine.device import open_accelerator, peak_memory, reset_peak_memory
from detdistill.engine.distillation import Distillation
from detdistill.engine.fit import freeze
from detdistill.engine.gradients import sum_of
from detdistill.engine.micro import split
from detdistill.engine.optim import build_optimizer, moving_average, rest_frozen, set_learning_rate
from detdistill.engine.step import Step
from detdistill.inspection.backward import backward_to, graph_mark
from detdistill.inspection.saved import Kept, bytes_of, saving
from detdistill.methods import Method
from detdistill.recipe import TrainConfig
from detdistill.types import Batch, Detector, DetectorOutput, Need, Targets, TrainState

Clock = Callable[[], float]
ROUNDS = 3  # timed repetitions of a part, after one that is not timed, while there is time


@dataclass(frozen=True)
class StepCost:
    """The student's own step. seconds: of a whole step. optimizer: seconds of it for clipping and the optimizer.

    peak, resting: bytes at the peak and between two steps, as `peak_memory` measures them, with the teacher's weights;
    None if they can't be measured. parameters: number of weights that train. detect: seconds of `detect` for the batch.
    """

    seconds: float
    optimizer: float
    peak: int | None
    resting: int | None
    parameters: int
    detect: float


@dataclass(frozen=True)
class PassCost:
    """A forward pass of the teacher for one micro-batch. seconds: its time. bytes: of the output that it leaves.

    peak: bytes at the peak of the pass, above those before it; at least `bytes`.
    """

    seconds: float
    bytes: int
    peak: int


@dataclass(frozen=True)
class MethodCost:
    """A method alone. forward, backward: seconds of one micro-batch.

    bytes: at the peak, beyond the outputs of student and teacher; at least what autograd keeps. parameters: number of
    its own weights. need: what it reads of the teacher.
    """

    forward: float
    backward: float
    bytes: int
    parameters: int
    need: Need


class Probe:
    """Measures the parts of a step. Nothing is written. The student keeps its weights, but not its norm statistics.

    batch, targets: images of one step. clock: seconds; on a GPU, its work is waited for. seconds: after this time no
    part is repeated.
    """

    def __init__(
        self,
        student: Detector,
        batch: Batch,
        targets: Targets,
        config: TrainConfig,
        *,
        clock: Clock = time.perf_counter,
        seconds: float = math.inf,
    ) -> None:
        self.accelerator: Accelerator = open_accelerator(config)
        self.device = self.accelerator.device
        self.student, self.config, self.clock = student, config, clock
        self.batch, self.targets = batch.to(self.device), targets.to(self.device)
        self.end = time.perf_counter() + seconds
        cast(nn.Module, student).to(self.device).train()

    def step(self) -> StepCost:
        """The cost of the student's step on the task losses, with optimizer and moving average."""
        distillation = Distillation(self.student).to(self.device).train()
        optimizer = build_optimizer(distillation, self.config)
        set_learning_rate(optimizer, 0.0)
        rest_frozen(distillation)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        average = moving_average(cast(nn.Module, self.student), self.config.ema) if self.config.ema else None
        step = Step(distillation, distillation, None, self.accelerator, self.config)
        tails: list[float] = []

        def run() -> None:
            step.backward(self.batch, self.targets, TrainState(0, 1), measure=False)
            self._settle()
            begin = self.clock()
            nn.utils.clip_grad_norm_(parameters, self.config.clip_norm or math.inf)
            optimizer.step()
            optimizer.zero_grad()
            if average is not None:
                average.update_parameters(cast(nn.Module, self.student))
            self._settle()
            tails.append(self.clock() - begin)

        run()  # the optimizer makes its state
        resting = self._resting()
        seconds = self._time(run, is_warm=True)
        peak = peak_memory(self.device)
        self.student.eval()
        with torch.no_grad(), self.accelerator.autocast():
            detect = self._time(lambda: self.student.detect(self.batch))
        self.student.train()
        rest_frozen(distillation)
        count = sum(parameter.numel() for parameter in parameters)
        return StepCost(seconds, statistics.median(tails[1:]), peak, resting, count, detect)

    def detect(self, detector: Detector) -> float:
        """Seconds of `detect` with the batch, in evaluation mode."""
        detector.to(self.device).eval()
        with torch.no_grad(), self.accelerator.autocast():
            return self._time(lambda: detector.detect(self.batch))

    def passes(self, teacher: Detector, needs: Iterable[Need]) -> dict[Need, PassCost]:
        """The cost of the teacher's forward pass for each need: it stops when the need is met."""
        freeze(teacher, self.device).eval()
        batch, _ = self._micro()
        costs: dict[Need, PassCost] = {}
        for need in dict.fromkeys(needs):
            if not costs:
                self._teach(teacher, batch, need)  # chooses kernels and fills caches
            kept: list[int] = []

            def run(need: Need = need, kept: list[int] = kept) -> None:
                kept.append(bytes_of(self._teach(teacher, batch, need)))

            before = self._resting()
            seconds = self._time(run)
            costs[need] = PassCost(seconds, kept[-1], max(kept[-1], self._above(before)))
        return costs

    def methods(
        self, teacher: Detector, methods: Sequence[Method], say: Callable[[str], None]
    ) -> dict[str, MethodCost]:
        """The cost of each method alone. say: is called with the name of the method that is measured next."""
        freeze(teacher, self.device).eval()
        batch, targets = self._micro()
        teacher_output = self._teach(teacher, batch, reduce(or_, (method.need for method in methods), Need()))
        held = Kept(list(self.student.parameters()))
        torch.manual_seed(self.config.seed)
        with self.accelerator.autocast(), saving(held):
            need = reduce(or_, (method.student_need for method in methods), Need())
            student_output = self.student.observe(batch, targets, need=need)
        state = TrainState(0, 1, ids=batch.ids)
        costs = {}
        for method in methods:
            say(method.name)
            costs[method.name] = self._method(method, student_output, teacher_output, targets, state, held)
        return costs

    def _method(
        self,
        method: Method,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState,
        held: Kept,
    ) -> MethodCost:
        method.to(self.device).train()
        known = [student_output, teacher_output, list(method.parameters())]
        mark = graph_mark()
        halves: list[tuple[float, float]] = []

        def run(kept: Kept | None = None) -> None:
            torch.manual_seed(self.config.seed)
            begin = self.clock()
            with self.accelerator.autocast():
                if kept is None:
                    terms = method(student_output, teacher_output, targets, state)
                else:
                    with saving(kept):
                        terms = method(student_output, teacher_output, targets, state)
            total = sum_of(terms)
            self._settle()
            middle = self.clock()
            backward_to(total, mark)
            self._settle()
            halves.append((middle - begin, self.clock() - middle))

        kept, before = Kept(known), self._resting()
        kept.ignore(held)
        run(kept)
        peak = max(kept.bytes, self._above(before))
        while len(halves) <= ROUNDS and time.perf_counter() < self.end:
            run()
        timed = halves[1:] or halves
        for parameter in [*method.parameters(), *self.student.parameters()]:
            parameter.grad = None
        forward, backward = (statistics.median(values) for values in zip(*timed, strict=True))
        count = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
        return MethodCost(forward, backward, peak, count, method.need)

    def _teach(self, teacher: Detector, batch: Batch, need: Need) -> DetectorOutput:
        with torch.no_grad(), self.accelerator.autocast():
            return teacher.observe(batch, need=need)

    def _micro(self) -> tuple[Batch, Targets]:
        """The first micro-batch of the step."""
        return split(self.batch, self.targets, self.config.accumulate)[0]

    def _time(self, run: Callable[[], Any], *, is_warm: bool = False) -> float:
        """The median of the seconds of a call, which is made once at least, and more often while there is time.

        is_warm: False: the first call is a warm-up, and counts only if there is no time for another.
        """
        times: list[float] = []
        rounds = ROUNDS if is_warm else ROUNDS + 1
        while not times or (len(times) < rounds and time.perf_counter() < self.end):
            self._settle()
            begin = self.clock()
            run()
            self._settle()
            times.append(self.clock() - begin)
        return statistics.median(times if is_warm else times[1:] or times)

    def _settle(self) -> None:
        """Wait until the device has finished its work. The CPU works synchronously."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def _resting(self) -> int | None:
        """Bytes in use now, as `peak_memory` measures them, which measures the next peak from here."""
        reset_peak_memory(self.device)
        return peak_memory(self.device)

    def _above(self, before: int | None) -> int:
        """Bytes of the peak above `before`; 0 if they can't be measured."""
        peak = peak_memory(self.device)
        return 0 if peak is None or before is None else peak - before
