"""The recipe as command-line flags: each field is a dotted flag, and common fields also have a short flag.

Imports neither torch nor a detector.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import yaml
from cyclopts import Parameter
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from detdistill.cli import output
from detdistill.cli.common import AUTO_BATCH, PLAIN_BATCH, in_groups
from detdistill.cli.help import metavar, shown_default
from detdistill.cli.options import Import, Json, Quiet
from detdistill.errors import UserError
from detdistill.recipe import Recipe, nested

SHORT = {
    "data": "data.path",
    "teacher": "teacher.path",
    "inherit": "teacher.inherit",
    "epochs": "train.epochs",
    "seed": "train.seed",
    "batch-size": "train.batch_size",
    "ema": "train.ema",
    "image-size": "data.image_size",
    "lr": "train.lr",
    "workers": "train.workers",
    "device": "train.device",
    "precision": "train.precision",
    "max-steps": "train.max_steps",
    "backbone-weights": "model.backbone_weights",
    "on-bad-record": "data.on_bad_record",
}
"""Short flags, and the field that each one sets."""


def leaves(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """The dotted path and the field of everything that one flag can set. Open mappings (`methods`) are read apart."""
    for name, info in model.model_fields.items():
        kinds = (info.annotation, *get_args(info.annotation))
        part = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if part is not None:
            yield from leaves(part, f"{prefix}{name}.")
        elif get_origin(info.annotation) is not dict:
            yield prefix + name, info


FIELDS = dict(leaves())
ALONE = {
    f"--{name}": str(extra["alone"])
    for path, info in FIELDS.items()
    if isinstance(extra := info.json_schema_extra, dict) and "alone" in extra
    for name in (path.replace("_", "-"), *(flag for flag, target in SHORT.items() if target == path))
} | {"--json": str(output.STDOUT)}
"""Flags that may stand without a value, and the value that they then have."""


def takes(
    *parts: str,
    without: Sequence[str] = (),
    defaults: Mapping[str, str] | None = None,
    quiet: bool = True,
    **names: str,
) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """A decorator that gives a command one typed flag per recipe field whose path begins with one of `parts`, and
    --import, --json and --quiet.

    The fields that are set arrive in the command's `**fields` under their dotted paths, and where to print in `output`;
    the plugins are loaded before the command runs. without: fields that it does not read. defaults: in words, where
    this command differs from the recipe. quiet: whether it has --quiet. names: further short flags of this command,
    such as student="model.name".
    """
    short = {**SHORT, **names}
    chosen = {path: info for path, info in FIELDS.items() if path not in without and parts and path.startswith(parts)}

    def decorate(function: Callable[..., int | None]) -> Callable[..., int | None]:
        flags = [
            _flag(
                path,
                _meaning(path, info, function.__name__),
                [name for name, target in short.items() if target == path],
                shown_default((defaults or {}).get(path, info.default)),
                is_switch=info.annotation is bool,
            )
            for path, info in chosen.items()
        ]
        paths = {flag.name: path for flag, path in zip(flags, chosen, strict=True)}
        signature = inspect.signature(function)
        given = [item for item in signature.parameters.values() if item.kind is not item.VAR_KEYWORD]
        explicit = [item for item in given if item.name != "output"]

        def command(*arguments: Any, **keywords: Any) -> int | None:
            with output.opened(keywords.pop("json", None), keywords.pop("quiet", False)) as opened:
                _load_plugins(keywords.pop("imports", None) or ())
                fields = {path: keywords.pop(name) for name, path in paths.items() if keywords.get(name) is not None}
                others = {name: value for name, value in keywords.items() if name not in paths}
                return function(*arguments, **others, output=opened, **fields)

        more = [_keyword("imports", Import), _keyword("json", Json), *([_keyword("quiet", Quiet, False)] * quiet)]
        parameters = in_groups([*explicit, *flags, *more], function.__name__)
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {item.name: item.annotation for item in parameters}
        return command

    return decorate


def _load_plugins(files: Iterable[Path]) -> None:
    """Load plugins if there are any. The check is cheap; the plugins themselves import torch."""
    if files or entry_points(group="detdistill.plugins"):
        from detdistill.run.plugins import load_plugins

        load_plugins(files)


def _meaning(path: str, info: FieldInfo, command: str) -> tuple[str, str]:
    """What stands for the value of a field in the help of a command, and what the field means there."""
    if path == "train.batch_size" and command not in AUTO_BATCH:
        return PLAIN_BATCH
    return metavar(path, info), info.description or ""


def _flag(path: str, text: tuple[str, str], short: list[str], default: str, *, is_switch: bool) -> inspect.Parameter:
    """The flag of a field. text: what stands for its value, and its meaning."""
    parameter = Parameter(
        # The dotted name first, or cyclopts takes --data for the beginning of --data.path.
        name=[f"--{name}" for name in (path.replace("_", "-"), *short)],
        help=f"{text[1]} {default}".strip(),
        metavar=text[0],
        negative=(),
        show_default=False,
    )
    kind: Any = bool if is_switch else str
    return _keyword(path.replace(".", "__"), Annotated[kind | None, parameter])


def _keyword(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def tidy(tokens: list[str]) -> list[str]:
    """The tokens with one spelling per flag: `--train.max_steps` as `--train.max-steps`, `--switch true` as
    `--switch=true`, and `--ema` without a value as `--ema=on`.

    A bare `--methods` becomes `--method`: cyclopts can't give one name to both a value and the dotted options of
    methods.
    """
    switches = {f"--{path.replace('_', '-')}" for path, info in FIELDS.items() if info.annotation is bool}
    tidied: list[str] = []
    for place, token in enumerate(tokens):
        if token.startswith("--"):
            name, equals, value = token.partition("=")
            name = "--method" if name == "--methods" else name.replace("_", "-")
            is_alone = not equals and (place + 1 == len(tokens) or tokens[place + 1].startswith("--"))
            if is_alone and name in ALONE:
                equals, value = "=", ALONE[name]
            tidied.append(name + equals + value)
        elif tidied and tidied[-1] in switches and token.lower() in ("true", "false"):
            tidied[-1] += f"={token}"
        else:
            tidied.append(token)
    return tidied


def names(text: str | None, flag: str) -> list[str] | None:
    """`pkd,cross-kd` as ["pkd", "cross_kd"]; None stays None. Raises UserError for an empty name."""
    if text is None:
        return None
    listed = [_plain(name.strip()) for name in text.split(",")]
    if not all(listed):
        raise UserError(
            f"{flag} {text!r}: give names separated by commas, such as pkd,crosskd; see `detdistill list methods`"
        )
    return list(dict.fromkeys(listed))


def labels(text: str) -> list[str]:
    """`none, pkd + cross-kd` as ["none", "pkd+cross_kd"]: what is compared, each one method or several joined ones."""
    listed = []
    for entry in names(text, "--methods") or ():
        joined = [name.strip() for name in entry.split("+")]
        repeated = len(set(joined)) < len(joined)
        if not all(joined) or repeated or ("none" in joined and len(joined) > 1):
            raise UserError(
                f"--methods {entry!r}: join different methods with +, such as pkd+crosskd; none (plain training) "
                "stands "
                "alone"
            )
        listed.append("+".join(joined))
    return list(dict.fromkeys(listed))


def overrides(
    fields: Mapping[str, Any],
    methods: Mapping[str, Mapping[str, str]] | None = None,
    model: Mapping[str, str] | None = None,
    teacher: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What the command line sets, as a nested mapping to lay over a recipe.

    fields: dotted path to text; `8,16,32` becomes a list, and `none` None where the field allows it. methods: method
    name to its options. model, teacher: options of one detector family alone, for the student and for the teacher.
    """
    tree = nested({path: _value(value, FIELDS[path].annotation) for path, value in fields.items()})
    if methods:
        tree["methods"] = {_plain(name): _options(options) for name, options in methods.items()}
    if model:
        tree.setdefault("model", {})["options"] = _options(model)
    if teacher:
        tree.setdefault("teacher", {}).setdefault("model", {})["options"] = _options(teacher)
    return tree


def _options(options: Mapping[str, str]) -> dict[str, Any]:
    return {_plain(name): _loose(text) for name, text in options.items()}


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _value(text: Any, annotation: Any) -> Any:
    kinds = (annotation, *get_args(annotation))
    if not isinstance(text, str):
        return text
    if NoneType in kinds and text.lower() in ("none", "null"):
        return None
    if get_origin(annotation) is tuple or ("," in text and any(get_origin(kind) is tuple for kind in kinds)):
        return [item.strip() for item in text.split(",")] if text.strip() else []
    return text


def _loose(text: str) -> Any:
    """The value of an open option, with the type that YAML gives it; the option's own type is checked later."""
    listed = f"[{text}]" if "," in text and not text.lstrip().startswith("[") else text
    try:
        return yaml.safe_load(listed)
    except yaml.YAMLError:
        return text


def check_options_used(
    options: Mapping[str, Mapping[str, str]] | None, methods: Sequence[str] | None, flag: str
) -> None:
    """Raises UserError if options are set for a method that is not among the chosen ones."""
    for name in options or {}:
        if methods and name.replace("-", "_") not in methods:
            chosen = ", ".join(methods)
            raise UserError(f"--methods.{name} is set, but {flag} names only {chosen}; add {name} to {flag}")
