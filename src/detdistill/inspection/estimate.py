"""Time and memory of a whole run, computed from the measured costs of its parts."""

from collections.abc import Sequence
from dataclasses import dataclass

from detdistill.evaluation.speed import timed_runs
from detdistill.inspection.probe import MethodCost, PassCost, StepCost
from detdistill.recipe import TrainConfig

WEIGHT_BYTES = 4
COPIES = {"adamw": 4, "sgd": 3}  # of a method's weight: itself, its gradient, and what the optimizer keeps


@dataclass(frozen=True)
class Schedule:
    """The length of a run.

    steps, per_epoch: optimizer steps of the run and of an epoch. evaluated: images of the final evaluation. sampled:
    images on which the teacher is measured before the first step.
    """

    steps: int
    per_epoch: int
    evaluated: int
    sampled: int


@dataclass(frozen=True)
class Loading:
    """Seconds that a batch of training images takes: first, when they are decoded, and again, from the cache.

    cached: the share of the images that the cache holds. workers: processes that load beside the training.
    """

    first: float
    again: float
    cached: float
    workers: int = 0

    def waits(self, compute: float) -> tuple[float, float]:
        """Seconds that a step waits for its batch: in the first epoch, and later. compute: seconds of the step."""
        later = self.cached * self.again + (1 - self.cached) * self.first
        if self.workers == 0:
            return self.first, later
        return max(0.0, self.first / self.workers - compute), max(0.0, later / self.workers - compute)


@dataclass(frozen=True)
class Prediction:
    """What a run will take.

    step: seconds of a step, with the wait for its images after the first epoch. student, teacher, method: its parts
    without the wait. times: `step` divided by that of plain training. memory: bytes at the peak; None if unknown.
    hours: of the whole run, with its set-up and its evaluations; None without data.
    """

    step: float
    student: float
    teacher: float
    method: float
    times: float
    memory: int | None
    hours: float | None


@dataclass(frozen=True)
class Base:
    """What all runs of a pair have in common.

    plain: the student's step. schedule: None without data. teacher_weights: bytes of the teacher, which `plain.peak`
    includes. teacher_detect: seconds that the teacher takes to detect a batch. setup: seconds to open data and models.
    """

    plain: StepCost
    train: TrainConfig
    loading: Loading
    schedule: Schedule | None = None
    teacher_weights: int = 0
    teacher_detect: float = 0.0
    setup: float = 0.0

    def predict(self, teacher: PassCost | None = None, methods: Sequence[MethodCost] = ()) -> Prediction:
        """The prediction for plain training (no teacher), or for one or several methods that run together.

        teacher: its forward pass for the needs of all methods together.
        """
        taught = 0.0 if teacher is None else self.train.accumulate * teacher.seconds
        own = sum(self._method_seconds(cost) for cost in methods)
        compute = self.plain.seconds + taught + own
        later, plain_later = self.loading.waits(compute)[1], self.loading.waits(self.plain.seconds)[1]
        times = (compute + later) / (self.plain.seconds + plain_later)
        memory = self._memory(teacher, methods)
        hours = self._hours(self.schedule, compute, teacher is not None)
        return Prediction(compute + later, self.plain.seconds, taught, own, times, memory, hours)

    def _method_seconds(self, cost: MethodCost) -> float:
        """Seconds of a method in a step.

        With exact accumulation, all micro-batches but one also run forward before. The optimizer takes as long per
        weight as for the student's.
        """
        count = self.train.accumulate
        rehearsals = count - 1 if self.train.accumulate_exact else 0
        optimizer = self.plain.optimizer * cost.parameters / max(self.plain.parameters, 1)
        return count * (cost.forward + cost.backward) + rehearsals * cost.forward + optimizer

    def _hours(self, schedule: Schedule | None, compute: float, is_taught: bool) -> float | None:
        """Hours of the run: its steps, the final evaluation with the latency, and the look at the teacher before."""
        if schedule is None:
            return None
        first, later = self.loading.waits(compute)
        early = min(schedule.steps, schedule.per_epoch)
        seconds = self.setup + schedule.steps * compute + early * first + (schedule.steps - early) * later
        read = self.loading.first / max(self.loading.workers, 1)
        size = self.train.images_per_step
        seconds += schedule.evaluated / size * (self.plain.detect + read)
        image = self.plain.detect / size
        seconds += image * timed_runs(image)
        if is_taught:
            seconds += schedule.sampled / size * (self.teacher_detect + read)
        return seconds / 3600

    def _memory(self, teacher: PassCost | None, methods: Sequence[MethodCost]) -> int | None:
        """Bytes at the peak, which is in the step or in the teacher's pass before it.

        With exact accumulation, all outputs of the teacher exist at the same time.
        """
        if self.plain.peak is None or self.plain.resting is None:
            return None
        if teacher is None:
            return self.plain.peak - self.teacher_weights
        outputs = self.train.accumulate if self.train.accumulate_exact else 1
        weights = COPIES[self.train.optimizer] * WEIGHT_BYTES
        added = sum(cost.bytes + weights * cost.parameters for cost in methods)
        before = self.plain.resting + (outputs - 1) * teacher.bytes + teacher.peak
        return max(self.plain.peak + outputs * teacher.bytes + added, before)
