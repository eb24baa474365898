"""The log's lines, cut and whole; what the person sees."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from detdistill.engine.log import Log, Meter
from detdistill.engine.progress import Progress
from detdistill.engine.watch import NotFiniteError, Watch

from .fakes import send_later


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_lines_past_the_checkpoint_are_cut_and_a_broken_one_dropped(tmp_path: Path) -> None:
    with Log(tmp_path, 0) as log:
        for step in (1, 3, 6):
            log.write({"step": step, "total": step / 3})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 9, "tot')
    with Log(tmp_path, 3) as log:
        log.write({"step": 6, "total": 7.0})
    assert rows(tmp_path) == [{"step": 1, "total": 1 / 3}, {"step": 3, "total": 1.0}, {"step": 6, "total": 7.0}]


def test_a_fresh_run_starts_a_fresh_log(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n')
    with Log(tmp_path, 0):
        pass
    assert rows(tmp_path) == []


def test_lines_are_strict_json(tmp_path: Path) -> None:
    with Log(tmp_path, 0) as log:
        log.write({"step": 1, "grad_norm": float("inf")})
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1, "grad_norm": null}\n'


def test_no_folder_no_log() -> None:
    with Log(None, 0) as log:
        log.write({"step": 1})
    assert log.file is None


def test_meter_tells_waiting_from_work() -> None:
    meter = Meter()
    assert list(meter.timed([1, 2])) == [1, 2]
    meter.images = 8
    first, second = meter.row(), meter.row()
    assert first["images_per_second"] > 0
    assert first["data_seconds"] > 0
    assert (second["images_per_second"], second["data_seconds"]) == (0, 0)


def run(console: Console, last: int = 400) -> None:
    with Progress(console, start=0, last=last, epochs=4, per_epoch=last // 4, every=3) as progress:
        for step in range(1, last + 1):
            due = step % 3 == 0 or step in (1, last)
            row = {
                "step": step,
                "epoch": 1,
                "lr": 0.1,
                "task_box": 0.123456,
                "total": 0.5,
                "images_per_second": 8.0,
                "data_seconds": 0.1,
            }
            progress.advance(step, row if due else None)


def test_some_twenty_plain_lines_where_there_is_no_terminal() -> None:
    text = io.StringIO()
    run(Console(file=text, force_terminal=False))
    lines = text.getvalue().splitlines()
    assert 18 <= len(lines) <= 22
    assert lines[0].startswith("epoch 1/4, step 1/400: task_box 0.1235, total 0.5, 8.0 images/s, 0:00:")
    assert lines[-1].startswith("epoch 4/4, step 400/400")


def test_a_bar_on_a_terminal() -> None:
    text = io.StringIO()
    run(Console(file=text, force_terminal=True, width=120))
    assert "400/400" in text.getvalue()
    assert "task_box 0.1235" in text.getvalue()


def test_watch_names_step_term_and_images() -> None:
    watch = Watch()
    watch.look(6, ("x.jpg",), {"task_box": torch.tensor(1.0)})
    with pytest.raises(NotFiniteError, match=r"step 7: task_box is nan; the batch was a\.jpg, b\.jpg") as caught:
        watch.look(7, ("a.jpg", "b.jpg"), {"task_box": torch.tensor(float("nan")), "total": torch.tensor(1.0)})
    assert isinstance(caught.value, FloatingPointError)


def test_watch_lets_the_scaled_gradient_overflow() -> None:
    watch = Watch(exempt=("grad_norm",))
    watch.look(1, (), {"total": torch.tensor(2.0), "grad_norm": torch.tensor(float("inf"))})
    assert watch.settle() == {"total": 2.0, "grad_norm": float("inf")}


def test_on_a_gpu_a_step_is_read_while_the_next_is_computed_and_before_anything_is_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("detdistill.engine.watch._send", send_later)
    watch = Watch()
    watch.look(1, ("a.jpg",), {"total": torch.tensor(1.0)})
    first = watch.waiting
    assert first is not None
    assert not first.arrived.awaited  # type: ignore[union-attr, attr-defined]
    watch.look(2, ("b.jpg",), {"total": torch.tensor(float("inf"))})
    assert first.arrived.awaited  # type: ignore[union-attr, attr-defined]
    assert watch.latest == {"total": 1.0}
    with pytest.raises(NotFiniteError, match=r"step 2: total is inf; the batch was b\.jpg"):
        watch.settle()
