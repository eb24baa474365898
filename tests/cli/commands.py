"""The command line as a function, and arguments of runs that take a second."""

import shlex
from collections.abc import Sequence

import pytest

from detdistill import cli
from tests.run.recipes import MODEL

# These set the fields of `tests.run.recipes.FIELDS`, except for the number of steps.
ARCHITECTURE = "--model.strides 8,16,32 --model.channels 32 --model.tower-depth 2"
DATA = "--data shapes:8 --image-size 64 --device cpu"
SMALL = f"{DATA} --batch-size 4 {ARCHITECTURE} --backbone-weights none"


def detdistill(command: str) -> int:
    """Run the command line with these arguments, and return its exit code."""
    return cli.main(shlex.split(command))


def assert_refused(command: str, parts: Sequence[str], capsys: pytest.CaptureFixture) -> None:
    """Asserts exit code 2, and one line on stderr that has these parts."""
    assert detdistill(command) == 2
    message = capsys.readouterr().err
    assert message.startswith("detdistill: ")
    assert message.count("\n") == 1
    assert [part for part in parts if part not in message] == [], message


def train(more: str) -> int:
    """Train the small model, and return the exit code. more: further arguments."""
    return detdistill(f"train --model {MODEL} {SMALL} {more}")
