"""The command-line application, what its commands share, and its entry point.

The commands are in `training`, `using`, `checks` and `reports`. torch is imported when a command runs, so --help is
quick.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError
from rich.console import Console

from detdistill.cli import flags
from detdistill.cli.help import ALL, MORE, HelpPage
from detdistill.cli.messages import explain
from detdistill.distributed import world_size
from detdistill.errors import UserError
from detdistill.recipe import Recipe, load

app = App(
    name="detdistill",
    help="Train a small object detector with a large one as its teacher, and measure the gain.",
    version=lambda: version("detdistill"),
    help_flags=("--help", "-h", ALL),
    help_on_error=False,
    suppress_keyboard_interrupt=False,
)

app["--help"].help = f"Show this help. After a command: its common flags, or all of them with {ALL}."
app["--version"].help = "Show the version."

RESUMED = ("train", "distill", "compare", "demo")  # the commands that have --resume
ORIGIN = "command line"  # where a wrong value comes from, in messages


def make_recipe(
    source: str | None,
    over: Mapping[str, Any],
    methods: Sequence[str] | None = None,
    out: Path | None = None,
    say: Console | None = None,
) -> Recipe:
    """Defaults, then the recipe file, or that of the run `out` to continue, then the flags. say: where notes go."""
    if source is None and out is not None and (out / "recipe.yaml").exists():
        source = str(out)
    return load(source, over, methods, origin=ORIGIN, say=say.print if say else None)


def choose_help(words: Sequence[str]) -> None:
    """Choose what help shows: the common flags of a command, or all with --help-all."""
    is_whole = ALL in words
    app.help_formatter = HelpPage(is_whole)
    app.help_epilogue = MORE if not is_whole and words and not words[0].startswith("-") else None


def main(tokens: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    0: done. 2: the input is wrong; one line on stderr says what. 1: interrupted, or `doctor` found a problem. Any other
    exception passes through.
    """
    if world_size() > 1:
        # torch prints harmless warnings once per process; its errors are still printed.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    words = list(sys.argv[1:] if tokens is None else tokens)
    choose_help(words)
    try:
        code = app(flags.tidy(words), exit_on_error=False, print_error=False, result_action="return_value")
    except (UserError, CycloptsError) as error:
        message = explain(error) if isinstance(error, CycloptsError) else str(error)
        print(f"detdistill: {' '.join(message.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        remedy = "; continue with --resume --out DIR" if words[0] in RESUMED else ""
        print(f"detdistill: interrupted{remedy}", file=sys.stderr)
        return 1
    return code or 0
