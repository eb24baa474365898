"""The lines of log.jsonl."""

import json
from pathlib import Path

import pytest

from detdistill.engine import log as log_module
from detdistill.engine.log import Log, Meter


def rows(out: Path) -> list[dict]:
    """The rows of log.jsonl."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_lines_after_the_checkpoint_and_a_broken_line_are_removed(tmp_path: Path) -> None:
    with Log(tmp_path, 0) as log:
        for step in (1, 3, 6):
            log.write({"step": step, "total": step / 3})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 9, "tot')
    with Log(tmp_path, 3) as log:
        log.write({"step": 6, "total": 7.0})
    assert rows(tmp_path) == [{"step": 1, "total": 1 / 3}, {"step": 3, "total": 1.0}, {"step": 6, "total": 7.0}]


def test_a_new_run_starts_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n')
    with Log(tmp_path, 0):
        pass
    assert rows(tmp_path) == []


def test_infinity_is_written_as_null(tmp_path: Path) -> None:
    with Log(tmp_path, 0) as log:
        log.write({"step": 1, "grad_norm": float("inf")})
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1, "grad_norm": null}\n'


def test_without_a_folder_nothing_is_written() -> None:
    with Log(None, 0) as log:
        log.write({"step": 1})
    assert log.file is None


def test_the_meter_counts_images_and_seconds_of_waiting() -> None:
    meter = Meter()
    assert list(meter.timed([1, 2])) == [1, 2]
    meter.images = 8
    first = meter.row()
    second = meter.row()
    assert first["images_per_second"] > 0
    assert first["data_seconds"] > 0
    assert (second["images_per_second"], second["data_seconds"]) == (0, 0)


def test_the_meter_gives_the_share_of_the_time_that_was_spent_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 1.0, 3.0, 10.0, 11.0, 16.0])  # made, asks for an item, gets it, row, ..., row
    monkeypatch.setattr(log_module.time, "perf_counter", lambda: next(seconds))
    meter = Meter()
    items = meter.timed(["a"])
    assert next(items) == "a"
    meter.row()
    assert meter.share == 0.2  # 2 of 10 seconds
    next(items, None)  # asks at 11; there is no other item
    meter.row()
    assert meter.share == 0.0


def test_the_line_of_the_last_step_is_removed_on_request(tmp_path: Path) -> None:
    with Log(tmp_path, 0) as log:
        for step in (1, 3, 4):
            log.write({"step": step})
    with Log(tmp_path, 4):
        pass
    assert [row["step"] for row in rows(tmp_path)] == [1, 3, 4]
    with Log(tmp_path, 4, keep_last=False):
        pass
    assert [row["step"] for row in rows(tmp_path)] == [1, 3]
