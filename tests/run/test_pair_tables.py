"""How the inspection of a pair prints its numbers."""

import pytest

from detdistill.run.pair_tables import duration


@pytest.mark.parametrize(
    ("hours", "text"),
    [
        (None, "-"),
        (0.01, "36 s"),
        (0.1, "6.0 min"),
        (0.5, "30 min"),
        (1.4, "84 min"),
        (2.25, "2.2 h"),
        (240.0, "240 h"),
    ],
)
def test_a_time_has_the_unit_that_people_use(hours: float | None, text: str) -> None:
    assert duration(hours) == text
