"""log.jsonl: one line per logged step. The file is the same whether or not the run was interrupted."""

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
    """The log file of the run folder `out`."""
    return out / "log.jsonl"


class Log:
    """Appends rows to the log of `out`. Lines after `step` are removed first, because the run repeats those steps.

    out: None in processes that don't write. keep_last: False also removes the line of `step` itself. A run that ends
    early at --max-steps logs its last step, which a run without this limit may not log.
    """

    def __init__(self, out: Path | None, step: int, keep_last: bool = True) -> None:
        self.file: TextIO | None = None
        if out is None:
            return
        path = log_path(out)
        kept = _lines_until(path, step if keep_last else step - 1) if step else []
        write_text(path, "".join(f"{line}\n" for line in kept))
        self.file = path.open("a")

    def write(self, row: Mapping[str, float | int | None]) -> None:
        """Write a row as one line. Infinite and NaN values (a gradient that the fp16 scaler skips) become null, because
        JSON has neither.
        """
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
    """Counts images and seconds since the last row; seconds of waiting for data are counted separately.

    share: of the time before the last row that was spent waiting, 0..1.
    """

    def __init__(self) -> None:
        self.images, self.waited, self.since = 0, 0.0, time.perf_counter()
        self.share = 0.0

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield `items`; the time until each one arrives counts as waiting."""
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
        """Returns {images_per_second, data_seconds (waiting for data)} since the last call."""
        now = time.perf_counter()
        self.share = self.waited / (now - self.since)
        row = {"images_per_second": self.images / (now - self.since), "data_seconds": self.waited}
        self.images, self.waited, self.since = 0, 0.0, now
        return row


def _lines_until(path: Path, step: int) -> list[str]:
    """The lines of the log up to `step`. An incomplete line, left by a killed process, and all later lines are
    dropped."""
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
