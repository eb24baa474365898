"""What a command prints: text for people, or one JSON object for machines.

--quiet leaves the warnings, on stderr, and one line with the result. --json prints the result as one JSON object and
sends everything else to stderr; --json FILE writes it to a file.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from detdistill.distributed import is_main
from detdistill.errors import UserError
from detdistill.files import write_json

STDOUT = Path("-")  # the value of --json without a file
LOUD = ("warning", "problem")  # how a line begins that --quiet does not hide


class QuietConsole(Console):
    """A console that prints warnings and problems on stderr, and nothing else."""

    def __init__(self) -> None:
        super().__init__(quiet=True, force_terminal=False)
        self.loud = make_console(stderr=True)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print a line that begins with `warning` or `problem`."""
        if objects and isinstance(objects[0], str) and objects[0].startswith(LOUD):
            self.loud.print(*objects, **options)


def make_console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is, in the main process only."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=not is_main(), stderr=stderr)


@dataclass(frozen=True)
class Output:
    """Where a command prints, and what it does with its result.

    console: for progress, tables and notes. json: file for the result, `-` for stdout, or None. quiet: the result is
    one line. stdout: of the process.
    """

    console: Console
    json: Path | None
    quiet: bool
    stdout: TextIO

    def end(self, content: Mapping[str, Any] | list[Any], line: str) -> None:
        """End the command with its result. line: the result in one line, which is printed with --quiet."""
        if not is_main():
            return
        if self.json == STDOUT:
            self._show(json.dumps(content, allow_nan=False))
            return
        if self.json is not None:
            write_json(self.json, content)
            self.console.print(f"written to {self.json}")
        if self.quiet:
            self._show(line)

    def _show(self, text: str) -> None:
        """Print a line on stdout as it is. If its reader, such as `head`, has ended, the command ends."""
        Console(file=self.stdout).out(text, highlight=False)


@contextmanager
def opened(json: Path | None, quiet: bool) -> Iterator[Output]:
    """The output of a command. With --json alone, what is printed to stdout goes to stderr meanwhile.

    Raises UserError if the file for the JSON is a folder, or a file of another kind that would be replaced.
    """
    stdout = sys.stdout
    if json is not None and json != STDOUT:
        _check_file(json)
    output = Output(QuietConsole() if quiet else make_console(), json, quiet, stdout)
    if json != STDOUT:
        yield output
        return
    with redirect_stdout(sys.stderr):
        yield output


def _check_file(path: Path) -> None:
    remedy = "; for JSON on stdout, give --json at the end, or as --json=-"
    if path.is_dir():
        raise UserError(f"--json {path} is a folder: name a file{remedy}")
    if path.exists() and path.suffix.lower() != ".json":
        raise UserError(f"--json {path} would replace a file that is not named .json: name another file{remedy}")
