"""The recipe as command-line flags: every field a dotted flag, the common ones a short flag too. Imports neither torch nor a detector."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from cyclopts import Group, Parameter
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from detdistill.errors import UserError
from detdistill.recipe import Recipe, nested

# Short flags of the surface, and the field each one sets.
SHORT = {
    "data": "data.path",
    "teacher": "teacher.path",
    "inherit": "teacher.inherit",
    "epochs": "train.epochs",
    "seed": "train.seed",
    "batch-size": "train.batch_size",
    "image-size": "data.image_size",
    "lr": "train.lr",
    "workers": "train.workers",
    "device": "train.device",
    "precision": "train.precision",
    "max-steps": "train.max_steps",
    "backbone-weights": "model.backbone_weights",
    "on-bad-record": "data.on_bad_record",
}
_COMMON = Group("Common flags", sort_key=1)


def leaves(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted path and field of everything that one flag can set. `methods` is open, and read apart."""
    for name, info in model.model_fields.items():
        part = next(
            (
                kind
                for kind in (info.annotation, *get_args(info.annotation))
                if isinstance(kind, type) and issubclass(kind, BaseModel)
            ),
            None,
        )
        if part is not None:
            yield from leaves(part, f"{prefix}{name}.")
        elif get_origin(info.annotation) is not dict:
            yield prefix + name, info


FIELDS = dict(leaves())


def takes(
    *parts: str, own: Mapping[str, str] | None = None, **names: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: the command's `**fields` becomes a typed flag for each recipe field that begins with one of `parts`.

    own: defaults of this command, in words, where they aren't the recipe's. names: further short flags of this command, such as
    student="model.name". The fields arrive under their dotted paths.
    """
    short = {**SHORT, **names}
    chosen = {path: info for path, info in FIELDS.items() if path.startswith(parts)}
    flags = [
        _flag(path, info, [name for name, target in short.items() if target == path], (own or {}).get(path))
        for path, info in chosen.items()
    ]
    paths = {flag.name: path for flag, path in zip(flags, chosen, strict=True)}

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [item for item in inspect.signature(function).parameters.values() if item.kind is not item.VAR_KEYWORD]

        def command(*arguments: Any, **keywords: Any) -> None:
            given = {path: keywords.pop(name) for name, path in paths.items() if keywords.get(name) is not None}
            function(*arguments, **{name: value for name, value in keywords.items() if name not in paths}, **given)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
        command.__annotations__ = {item.name: item.annotation for item in [*own, *flags]}
        return command

    return decorate


def _flag(path: str, info: FieldInfo, short: list[str], default: str | None) -> inspect.Parameter:
    dotted = path.replace("_", "-")
    kind = bool if info.annotation is bool else str
    parameter = Parameter(
        # The dotted name first: cyclopts takes --data for the beginning of --data.path otherwise.
        name=[f"--{name}" for name in (dotted, *short)],
        help=f"{info.description or ''} {_choices(info)}{_shown(info.default if default is None else default)}".strip(),
        group=_COMMON if short else Group(f"Recipe: {path.split('.')[0]}", sort_key=2),
        negative=(),
        show_default=False,
    )
    name = path.replace(".", "__")
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, parameter]
    )


def _choices(info: FieldInfo) -> str:
    return f"({', '.join(get_args(info.annotation))}) " if get_origin(info.annotation) is Literal else ""


def _shown(default: Any) -> str:
    if default in (None, "", (), PydanticUndefined):
        return ""
    return f"[default: {','.join(map(str, default)) if isinstance(default, tuple) else default}]"


def tidy(tokens: list[str]) -> list[str]:
    """Tokens with flag names in one spelling (`--train.max_steps` as `--train.max-steps`) and `--switch true` as `--switch=true`.

    A bare `--methods` is `--method`: its dotted forms are the methods' options, and one name can't be both.
    """
    switches = {f"--{path.replace('_', '-')}" for path, info in FIELDS.items() if info.annotation is bool}
    tidied: list[str] = []
    for token in tokens:
        if token.startswith("--"):
            name, equals, value = token.partition("=")
            name = "--method" if name == "--methods" else name
            tidied.append(name.replace("_", "-") + equals + value)
        elif tidied and tidied[-1] in switches and token.lower() in ("true", "false"):
            tidied[-1] += f"={token}"
        else:
            tidied.append(token)
    return tidied


def names(listed: str | None, flag: str) -> list[str] | None:
    """`pkd,cross-kd` to ["pkd", "cross_kd"]; None stays None."""
    if listed is None:
        return None
    found = [name.strip().replace("-", "_") for name in listed.split(",")]
    if not all(found):
        raise UserError(
            f"{flag} {listed!r}: names with commas between them, such as pkd,crosskd; see `detdistill list methods`"
        )
    return list(dict.fromkeys(found))


def labels(listed: str) -> list[str]:
    """`none, pkd + cross-kd` to ["none", "pkd+cross_kd"]: what is compared, each one method or several that are joined."""
    found = []
    for entry in names(listed, "--methods") or ():
        joined = [name.strip() for name in entry.split("+")]
        if not all(joined) or len(set(joined)) < len(joined) or ("none" in joined and len(joined) > 1):
            raise UserError(
                f"--methods {entry!r}: different methods with + between them, such as pkd+crosskd; none, plain training, alone"
            )
        found.append("+".join(joined))
    return list(dict.fromkeys(found))


def overrides(fields: Mapping[str, Any], options: Mapping[str, Mapping[str, str]] | None = None) -> dict[str, Any]:
    """What the command line says, as a nested mapping to lay over a recipe.

    fields: dotted path to text. options: method to its options. `8,16,32` is a list; `none` is none where the field may be none.
    """
    tree = nested({path: _value(value, FIELDS[path].annotation) for path, value in fields.items()})
    if options:
        tree["methods"] = {
            _plain(name): {_plain(key): _loose(text) for key, text in given.items()} for name, given in options.items()
        }
    return tree


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
    """An option of a method: YAML says its type here; the method's own fields check it later."""
    listed = f"[{text}]" if "," in text and not text.lstrip().startswith("[") else text
    try:
        return yaml.safe_load(listed)
    except yaml.YAMLError:
        return text
