"""log.jsonl: one line a logged step, and the same file whether or not the run was interrupted."""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TextIO, TypeVar

from detdistill.files import write_text

Item = TypeVar("Item")


def log_path(out: Path) -> Path:
    """Where the log of the run folder `out` is."""
    return out / "log.jsonl"


class Log:
    """Appends rows to the log of `out`. Lines of steps after `step` are cut off: the run does those steps again.

    out: None in the processes that don't write, since one log is enough.
    """

    def __init__(self, out: Path | None, step: int) -> None:
        self.file: TextIO | None = None
        if out is None:
            return
        path = log_path(out)
        kept = _lines_until(path, step) if step else []
        write_text(path, "".join(f"{line}\n" for line in kept))
        self.file = path.open("a")

    def write(self, row: Mapping[str, float | int | None]) -> None:
        """A row becomes a line. What is not finite (a gradient that the fp16 scaler skips) becomes null: JSON has no word for it."""
        if self.file is None:
            return
        finite = {name: value if value is None or math.isfinite(value) else None for name, value in row.items()}
        self.file.write(json.dumps(finite) + "\n")
        self.file.flush()

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file is not None:
            self.file.close()


class Meter:
    """Images and seconds, those spent waiting for data apart, since the last row."""

    def __init__(self) -> None:
        self.images, self.waited, self.since = 0, 0.0, time.perf_counter()

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """`items`, with the time that each took to come counted as waiting."""
        iterator = iter(items)
        while True:
            begin = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.waited += time.perf_counter() - begin
            yield item

    def row(self) -> dict[str, float]:
        """{images_per_second, data_seconds} since the last call."""
        now = time.perf_counter()
        row = {"images_per_second": self.images / (now - self.since), "data_seconds": self.waited}
        self.images, self.waited, self.since = 0, 0.0, now
        return row


def _lines_until(path: Path, step: int) -> list[str]:
    """The log's lines up to `step`. Reading ends at a line that a kill cut short."""
    lines: list[str] = []
    if not path.exists():
        return lines
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except ValueError:
            break
        lines.append(line)
    return lines
