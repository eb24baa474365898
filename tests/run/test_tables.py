"""Printed lines."""

import io

import pytest
from rich.console import Console

from detdistill.run.tables import printer, summary


def test_lines_are_printed_by_the_main_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    console = Console(file=text)
    printer(None)("nowhere")
    printer(console)("main process")
    monkeypatch.setenv("RANK", "1")
    printer(console)("second process")
    assert text.getvalue() == "main process\n"


def test_a_detector_is_summed_up_by_the_two_main_metrics() -> None:
    assert summary({"AP": 12.34, "AP50": None, "APs": 1.0}) == "AP 12.3, AP50 -"
