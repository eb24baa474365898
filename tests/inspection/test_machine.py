"""The list of checks, and their verdict."""

from collections.abc import Iterator

import pytest

from detdistill.inspection import machine
from detdistill.inspection.check import Check
from detdistill.inspection.machine import examine, verdict


def test_a_check_that_fails_is_a_problem_and_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Check]:
        yield Check("first", "ok", "until here")
        raise OSError("libcudart.so: cannot open\nshared object file")

    def fine() -> Iterator[Check]:
        yield Check("last", "ok", "fine")

    monkeypatch.setattr(machine, "CHECKS", {"first": broken, "again": broken, "last": fine})
    checks = list(examine())
    assert [(check.name, check.state) for check in checks] == [
        ("first", "ok"),
        ("first", "problem"),
        ("first", "ok"),
        ("last", "ok"),  # the same error is reported once
    ]
    assert checks[1].text == "OSError: libcudart.so: cannot open shared object file"


def test_the_verdict_counts_problems_and_warnings() -> None:
    fine, warning, problem = Check("a", "ok", ""), Check("b", "warning", ""), Check("c", "problem", "")
    assert verdict([fine]) == "ready to train"
    assert verdict([fine, warning]) == "ready to train, with 1 warning"
    assert verdict([problem, warning, warning]) == "not ready: 1 problem and 2 warnings"
