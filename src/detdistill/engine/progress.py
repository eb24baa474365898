"""Progress of a run: a bar on a terminal, about twenty plain lines elsewhere."""

import math
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

LINES = 20  # per run, without a terminal
NOT_TERMS = (
    "images_per_second",
    "data_seconds",
    "step",
    "epoch",
    "lr",
    "grad_norm",
)  # columns of a log row that are not loss terms


class Progress:
    """Shows the steps `start` to `last` of a run: `epochs` epochs of `per_epoch` steps, with a log row every `every`
    steps.
    """

    def __init__(self, console: Console, *, start: int, last: int, epochs: int, per_epoch: int, every: int) -> None:
        self.console, self.start, self.last, self.epochs, self.per_epoch = console, start, last, epochs, per_epoch
        self.line_every = max(every, math.ceil(last / LINES / every) * every)
        self.begin = time.monotonic()
        self.terms = Text(style="dim", no_wrap=False, overflow="fold")  # a cut number would be a wrong one
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
        )
        self.task = self.bar.add_task(self._epoch(start), total=last, completed=start, speed="")
        self.live = (
            Live(Group(self.bar, self.terms), console=console, refresh_per_second=2) if console.is_terminal else None
        )

    def advance(self, step: int, row: Mapping[str, float] | None = None) -> None:
        """Show that step `step` is done. row: its log row, or None if the step is not logged."""
        if self.live is not None:
            self.bar.update(self.task, completed=step, description=self._epoch(step - 1))
            if row is not None:
                self.bar.update(self.task, speed=f"{row['images_per_second']:.1f} images/s")
                self.terms.plain = _terms(row)
        elif row is not None and (step % self.line_every == 0 or step in (1, self.last)):
            left = (time.monotonic() - self.begin) / (step - self.start) * (self.last - step)
            speed = f"{row['images_per_second']:.1f} images/s, {clock(left)} left"
            line = f"{self._epoch(step - 1)}, step {step}/{self.last}: {_terms(row)}, {speed}"
            self.console.print(line, highlight=False, soft_wrap=True)

    def __enter__(self) -> "Progress":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def _epoch(self, step: int) -> str:
        return f"epoch {min(step // self.per_epoch + 1, self.epochs)}/{self.epochs}"


def _terms(row: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in NOT_TERMS)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
