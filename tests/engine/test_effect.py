"""The warning about methods whose gradient is far from the task's."""

import pytest

from detdistill.engine.effect import CHECKED, EffectCheck, warning


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(10.1, "drowns the task"), (10.0, ""), (0.01, ""), (0.0099, "has hardly any effect"), (0.0, "hardly any effect")],
)
def test_the_limits(ratio: float, words: str) -> None:
    assert words in warning("pkd", ratio) and bool(words) == bool(warning("pkd", ratio))


def test_the_median_of_the_checked_steps_decides() -> None:
    check = EffectCheck(exempt=frozenset({"fgd"}))
    for step, pkd in zip(CHECKED, (100.0, 50.0, 1.0), strict=True):
        lines = check.add(step, {"ratio_pkd": pkd, "ratio_cwd": 1.0, "ratio_fgd": 1e4})
    assert len(lines) == 1 and "method pkd: its gradient at the student's neck is 50 times the task's" in lines[0]


def test_a_method_that_joined_late_is_not_judged() -> None:
    check = EffectCheck()
    check.add(CHECKED[0], {})
    check.add(CHECKED[1], {"ratio_pkd": 1e3})
    assert check.add(CHECKED[2], {"ratio_pkd": 1e3}) == []
