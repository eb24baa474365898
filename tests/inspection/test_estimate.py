"""Predictions computed by hand from the costs of the parts."""

from dataclasses import replace

import pytest

from detdistill.evaluation.speed import timed_runs
from detdistill.inspection.estimate import Base, Loading, Schedule
from detdistill.inspection.probe import MethodCost, PassCost, StepCost
from detdistill.recipe import TrainConfig
from detdistill.types import Need

STEP = StepCost(seconds=2.0, optimizer=0.1, peak=1000, resting=600, parameters=100, detect=0.8)
TEACHER = PassCost(seconds=1.0, bytes=50, peak=90)
METHOD = MethodCost(forward=0.2, backward=0.3, bytes=30, parameters=10, need=Need())
LOADING = Loading(first=0.5, again=0.1, cached=0.75)


def base(loading: Loading = LOADING, schedule: Schedule | None = None, **train: object) -> Base:
    return Base(STEP, TrainConfig(batch_size=8, **train), loading, schedule, teacher_weights=200, teacher_detect=1.6)


def test_a_step_is_the_sum_of_its_parts() -> None:
    plain, taught = base().predict(), base().predict(TEACHER, [METHOD])
    wait = 0.75 * 0.1 + 0.25 * 0.5
    assert plain.step == pytest.approx(2.0 + wait)
    assert (plain.teacher, plain.method, plain.times, plain.hours) == (0.0, 0.0, 1.0, None)
    assert taught.method == pytest.approx(0.5 + 0.1 * 10 / 100)
    assert taught.step == pytest.approx(2.0 + 1.0 + 0.51 + wait)
    assert taught.times == pytest.approx(taught.step / plain.step)
    both = base().predict(TEACHER, [METHOD, METHOD])
    assert both.step - taught.step == pytest.approx(0.51)


def test_memory_adds_what_the_method_keeps_and_its_weights() -> None:
    assert base().predict().memory == 1000 - 200
    assert base().predict(TEACHER, [METHOD]).memory == 1000 + 50 + 30 + 4 * 4 * 10
    assert base(optimizer="sgd").predict(TEACHER, [METHOD]).memory == 1000 + 50 + 30 + 3 * 4 * 10
    assert base(accumulate=4).predict(TEACHER, [METHOD]).memory == 1000 + 4 * 50 + 30 + 160
    large = PassCost(seconds=1.0, bytes=50, peak=900)
    assert base().predict(large, [METHOD]).memory == 600 + 900


def test_micro_batches_are_rehearsed_only_with_exact_counts() -> None:
    exact, free = (base(accumulate=4, accumulate_exact=value).predict(TEACHER, [METHOD]) for value in (True, False))
    assert free.method == pytest.approx(4 * 0.5 + 0.01)
    assert exact.method == pytest.approx(4 * 0.5 + 3 * 0.2 + 0.01)
    assert exact.teacher == free.teacher == 4.0


def test_a_run_is_its_steps_and_its_evaluations() -> None:
    schedule = Schedule(steps=30, per_epoch=10, evaluated=80, sampled=16)
    later = 0.2
    evaluation = 10 * (0.8 + 0.5) + 0.1 * timed_runs(0.1)
    plain = 30 * 2.0 + 10 * 0.5 + 20 * later + evaluation
    assert base(schedule=schedule).predict().hours == pytest.approx(plain / 3600)
    taught = plain + 30 * 1.51 + 2 * (1.6 + 0.5)
    assert base(schedule=schedule).predict(TEACHER, [METHOD]).hours == pytest.approx(taught / 3600)
    later_start = replace(base(schedule=schedule), setup=36.0)
    assert later_start.predict().hours == pytest.approx(plain / 3600 + 0.01)


def test_workers_load_while_the_model_computes() -> None:
    assert Loading(first=6.0, again=1.0, cached=1.0, workers=2).waits(2.0) == (1.0, 0.0)
    assert LOADING.waits(2.0) == (0.5, pytest.approx(0.2))


def test_a_device_without_a_measured_peak_has_no_memory() -> None:
    unknown = StepCost(2.0, 0.1, None, None, 100, 0.8)
    assert Base(unknown, TrainConfig(), LOADING).predict().memory is None
