"""The command line as a function, and arguments of runs that take a second."""

import shlex

from detdistill import cli
from tests.run.recipes import MODEL

# These set the fields of `tests.run.recipes.FIELDS`, except for the number of steps.
ARCHITECTURE = "--model.strides 8,16,32 --model.channels 32 --model.tower-depth 2"
DATA = "--data shapes:8 --image-size 64 --device cpu"
SMALL = f"{DATA} --batch-size 4 {ARCHITECTURE} --backbone-weights none"


def detdistill(command: str) -> int:
    """Run the command line with these arguments, and return its exit code."""
    return cli.main(shlex.split(command))


def train(more: str) -> int:
    """Train the small model, and return the exit code. more: further arguments."""
    return detdistill(f"train --model {MODEL} {SMALL} {more}")
