"""The flags that `--help` shows for each command, in this order. `--help-all` shows all flags.

Each name is a short flag, or the name of a parameter of the command, with dashes.
"""

import inspect
from collections.abc import Sequence
from typing import Annotated, get_args

from cyclopts import Group, Parameter

from detdistill.cli.help import COMMON
from detdistill.recipe import Recipe

_TRAINING = ("recipe", "out", "epochs", "batch-size", "lr", "image-size")
_PAIR = ("student", "teacher", "data", "method", "methods")
_SCREEN = ("json", "quiet")

COMMON_FLAGS: dict[str, tuple[str, ...]] = {
    "demo": ("out", "epochs", "batch-size", "seed", "workers", "device", "max-steps", "resume", "overwrite", *_SCREEN),
    "train": (
        *("model", "data", *_TRAINING, "backbone-weights", "seed", "device", "precision"),
        *("resume", "overwrite", *_SCREEN),
    ),
    "distill": (*_PAIR, *_TRAINING, "device", "precision", "resume", "overwrite", *_SCREEN),
    "compare": (*_PAIR, "seeds", *_TRAINING, "device", "resume", "overwrite", *_SCREEN),
    "evaluate": (
        *("model", "data", "split", "recipe", "out", "image-size", "batch-size", "workers", "device"),
        *("overwrite", *_SCREEN),
    ),
    "predict": (
        *("model", "out", "threshold", "save", "compare", "tile", "every", "max-frames", "image-size"),
        *("batch-size", "device", "overwrite", *_SCREEN),
    ),
    "export": (
        *("model", "out", "format", "precision", "data", "image-size", "fixed", "opset", "max-loss", "force"),
        *("overwrite", *_SCREEN),
    ),
    "report": ("out", "resamples", "overwrite", *_SCREEN),
    "inspect": (
        *(*_PAIR, "model", "recipe", "image-size", "batch-size", "epochs", "device", "out"),
        *("overwrite", *_SCREEN),
    ),
    "doctor": _SCREEN,
    "show": ("image-size", "import", "json"),
}
"""By the name of the command's function."""
AUTO_BATCH = ("train", "distill")  # the commands that can choose a batch size
PLAIN_BATCH = ("N", "images per step, over all processes")  # value and meaning of --batch-size for the others
GROUPS = {
    COMMON: Group(COMMON, sort_key=1),
    "more": Group("More flags", sort_key=2),
    **{part: Group(f"Recipe: {part}", sort_key=3) for part in Recipe.model_fields},
}
"""The panels of help: common flags, others, and those of the recipe by their part."""


def in_groups(parameters: Sequence[inspect.Parameter], command: str) -> list[inspect.Parameter]:
    """The parameters of a command with the group of their help: the common flags in their order, then the others."""
    arguments = [item for item in parameters if item.kind is not item.KEYWORD_ONLY]
    common = COMMON_FLAGS.get(command, ())
    ordered: dict[int, inspect.Parameter] = {}
    others = []
    for item in parameters:
        if item.kind is not item.KEYWORD_ONLY:
            continue
        names = {name.removeprefix("--") for name in get_args(item.annotation)[1].name or ()}
        places = [common.index(name) for name in (*names, item.name.replace("_", "-")) if name in common]
        part = item.name.split("__")[0] if "__" in item.name else "more"
        group = GROUPS[COMMON if places else part]
        grouped = item.replace(annotation=Annotated[item.annotation, Parameter(group=group)])
        if places:
            ordered[places[0]] = grouped
        else:
            others.append(grouped)
    return [*arguments, *(ordered[place] for place in sorted(ordered)), *others]
