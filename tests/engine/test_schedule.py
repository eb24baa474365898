"""The factor of a method's weight during a run."""

import pytest

from detdistill.engine.schedule import Schedule
from detdistill.types import TrainState


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
def test_factors_equal_values_by_hand(schedule: Schedule, by_step: dict[int, float]) -> None:
    factors = {step: schedule.factor(TrainState(step, 100)) for step in by_step}
    assert factors == pytest.approx(by_step, abs=1e-12)


def test_a_weight_that_decays_or_stops_needs_the_length_of_the_run() -> None:
    assert Schedule(warmup_steps=2).factor(TrainState(1)) == 0.5
    for schedule in (Schedule(decay="linear"), Schedule(stop=0.5)):
        with pytest.raises(ValueError, match=r"state=TrainState\(step, steps\)"):
            schedule.factor(TrainState(1))
