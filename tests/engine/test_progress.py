"""The progress of a run: a bar on a terminal, and plain lines elsewhere."""

import io

from rich.console import Console

from detdistill.engine.progress import Progress


def printed(last: int = 400, **console: object) -> str:
    """What a run of `last` steps prints, with a log row every 3 steps. console: arguments of Console."""
    text = io.StringIO()
    row = {"epoch": 1, "lr": 0.1, "task_box": 0.123456, "total": 0.5, "images_per_second": 8.0, "data_seconds": 0.1}
    with Progress(
        Console(file=text, **console), start=0, last=last, epochs=4, per_epoch=last // 4, every=3
    ) as progress:
        for step in range(1, last + 1):
            is_logged = step % 3 == 0 or step in (1, last)
            progress.advance(step, {"step": step, **row} if is_logged else None)
    return text.getvalue()


def test_without_a_terminal_a_run_prints_about_twenty_lines() -> None:
    lines = printed(force_terminal=False).splitlines()
    assert 18 <= len(lines) <= 22
    assert lines[0].startswith("epoch 1/4, step 1/400: task_box 0.1235, total 0.5, 8.0 images/s, 0:00:")
    assert lines[-1].startswith("epoch 4/4, step 400/400")


def test_on_a_terminal_a_run_shows_a_bar() -> None:
    text = printed(force_terminal=True, width=120)
    assert "400/400" in text
    assert "task_box 0.1235" in text


def test_a_narrow_terminal_cuts_no_number() -> None:
    assert "0.5" in "".join(printed(force_terminal=True, width=18).split("total")[-1])
