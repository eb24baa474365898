"""Schedules by hand, and what silence saves."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from detdistill.engine.distillation import Distillation
from detdistill.engine.fit import fit
from detdistill.engine.schedule import Schedule
from detdistill.types import Need, TrainState

from .fakes import Loader, Match, config, host


@pytest.mark.parametrize(
    ("schedule", "by_step"),
    [
        (Schedule(), {0: 1, 50: 1, 100: 1, 120: 1}),
        (Schedule(warmup_steps=4), {0: 0, 1: 0.25, 4: 1, 100: 1}),
        (Schedule(stop=0.5), {0: 1, 49: 1, 50: 0, 100: 0}),
        (Schedule(decay="linear"), {0: 1, 25: 0.75, 100: 0}),
        (Schedule(decay="linear", stop=0.8), {0: 1, 20: 0.75, 79: 1 / 80, 80: 0, 100: 0}),
        (Schedule(decay="cosine", stop=0.8), {0: 1, 20: 0.8535533905932737, 40: 0.5, 80: 0}),
        (Schedule(warmup_steps=50, decay="linear"), {25: 0.5 * 0.75, 50: 0.5}),
    ],
)
def test_factors_by_hand(schedule: Schedule, by_step: dict[int, float]) -> None:
    found = {step: schedule.factor(TrainState(step, 100)) for step in by_step}
    assert found == pytest.approx(by_step, abs=1e-12)


def test_a_weight_that_ends_asks_for_the_length_of_the_run() -> None:
    assert Schedule(warmup_steps=2).factor(TrainState(1)) == 0.5
    for schedule in (Schedule(decay="linear"), Schedule(stop=0.5)):
        with pytest.raises(ValueError, match=r"state=TrainState\(step, steps\)"):
            schedule.factor(TrainState(1))


def test_each_stop_silences_its_method_and_lowers_the_need() -> None:
    methods = [Match(name="long"), Match(name="short", pyramid="backbone")]
    student = host()
    whole = Distillation(student, methods, {"short": Schedule(stop=0.3), "long": Schedule(stop=0.6)})
    both, one = Need(pyramids=frozenset({"neck", "backbone"})), Need(pyramids=frozenset({"neck"}))
    assert [whole.need_at(TrainState(step, 10)) for step in (0, 2, 3, 5, 6, 9)] == [both, both, one, one, None, None]
    assert whole.need == both
    batch, targets = Loader().batch(0, 0)
    lesson = host(1).observe(batch)
    terms = [{name.split("_")[0] for name in whole(batch, targets, lesson, TrainState(step, 10))} for step in (2, 3)]
    assert terms == [{"task", "long", "short"}, {"task", "long"}]
    assert set(whole(batch, targets, None, TrainState(6, 10))) == {"task_box", "task_class"}  # and no lesson is missed
    assert student.seen == [both, one, Need()]


def test_a_run_whose_methods_have_stopped_leaves_the_teacher_alone(tmp_path: Path) -> None:
    teacher = host(1)
    whole = Distillation(host(), [Match()], {"match": Schedule(stop=0.5)})
    fit(whole, Loader(), teacher=teacher, config=config(log_every=1), out=tmp_path, console=Console(quiet=True))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert ["match_fine" in line for line in lines] == [True] * 8 + [False] * 7  # 7 / 15 < 0.5 <= 8 / 15
    assert len(teacher.seen) == 8
