"""How `--help` looks: the common flags of a command; and `--help-all`: every flag with its dotted name."""

from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from cyclopts.help import DefaultFormatter, HelpEntry, HelpPanel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich.console import Console, ConsoleOptions

ALL = "--help-all"
COMMON = "Common flags"  # the heading of what --help shows
SHORT_HELP = ("Commands", "Arguments", COMMON)  # panels of --help
MORE = f"{ALL} shows all flags, each with the field of the recipe that it sets."
OPEN = {
    "--methods": "METHOD.OPTION VALUE",
    "--model.options": "OPTION VALUE",
    "--teacher.model.options": "OPTION VALUE",
}
"""Flags that take options of any name, and what follows them."""

WIDEST = 24  # characters of a value that lists its choices; longer lists stand in the description
NAMED = {"metavar": "NAME"}
SHORT_TYPES = {"INT": "N", "STR": "TEXT"}
TEXTS = {
    "model.name": "MODEL",
    "model.backbone_weights": "default|none|FILE|RUN",
    "model.mean": "R,G,B",
    "model.std": "R,G,B",
    "data.path": "PATH",
    "data.train_split": "NAME",
    "data.eval_split": "NAME",
    "data.image_size": "SIDE|H,W",
    "data.scale": "LOW,HIGH",
    "data.multiscale": "LOW,HIGH",
    "teacher.path": "TEACHER",
    "train.device": "DEVICE",
    "train.ema": "DECAY|on|none",
}
"""What stands for the value of a field in help, where its type says too little."""


def metavar(path: str, info: FieldInfo) -> str:
    """What stands for the value of a field in help: N, FLOAT, `stop|skip`, `N,N,...`, `FLOAT|none`, or a name."""
    path = path.removeprefix("teacher.") if path.startswith("teacher.model.") else path
    return TEXTS.get(path) or _kind(info.annotation)


def _kind(annotation: Any) -> str:
    names = {int: "N", float: "FLOAT", str: "TEXT", Path: "PATH", NoneType: "none"}
    arguments = get_args(annotation)
    if annotation in names:
        return names[annotation]
    if hasattr(annotation, "__metadata__"):  # Annotated, such as PositiveInt
        return _kind(arguments[0])
    if get_origin(annotation) is Literal:
        return "|".join(map(str, arguments))
    if get_origin(annotation) is tuple:
        parts = [_kind(part) for part in arguments if part is not ...]
        return f"{parts[0]},..." if ... in arguments else ",".join(parts)
    return "|".join(_kind(part) for part in arguments)


def shown_default(default: Any) -> str:
    """The default of a flag as help shows it, or an empty text if there is none."""
    if default in (None, "", (), PydanticUndefined):
        return ""
    text = str(default).lower() if isinstance(default, bool) else str(default)
    return f"[default: {','.join(map(str, default)) if isinstance(default, tuple) else text}]"


@dataclass(frozen=True)
class HelpPage:
    """Formats the help. whole: every flag with all its names; else the common flags with their short names."""

    whole: bool
    panels: DefaultFormatter = field(default_factory=DefaultFormatter)

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print one panel, unless it is left out."""
        if self.whole or str(panel.title) in SHORT_HELP:
            self.panels(console, options, panel.copy(entries=[self._entry(entry) for entry in panel.entries]))

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Print how the command is called."""
        self.panels.render_usage(console, options, usage)

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:
        """Print what the command does."""
        self.panels.render_description(console, options, description)

    def _entry(self, entry: HelpEntry) -> HelpEntry:
        names = entry.positive_names
        if entry.metavar:
            entry = entry.copy(metavar=SHORT_TYPES.get(entry.metavar, entry.metavar))
            listed = "|".join(entry.choices or ())
            if listed:
                entry = entry.copy(**({"metavar": listed, "choices": None} if len(listed) < WIDEST else NAMED))
        elif entry.default == "False":  # a switch
            entry = entry.copy(default=None)
        if len(names) == 1 and names[0] in OPEN:
            return entry.copy(positive_names=(f"{names[0]}.{OPEN[names[0]]}",))
        short = tuple(name for name in names if "." not in name)
        return entry if self.whole or not short else entry.copy(positive_names=short)
