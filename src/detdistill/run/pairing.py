"""The methods of a run and their options. Whatever is wrong with them is found here, before the first step."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import cache
from types import NoneType
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from detdistill.detectors.build import build
from detdistill.detectors.registry import DETECTORS
from detdistill.engine.distillation import Distillation
from detdistill.engine.schedule import Schedule
from detdistill.errors import UserError, nearest
from detdistill.methods import METHODS, Method
from detdistill.methods.presets import preset
from detdistill.recipe import ModelConfig, merge
from detdistill.types import Detector, DetectorInfo

Options = Mapping[str, Mapping[str, Any]]
BUILT_IN = frozenset(DETECTORS)  # at import, before --import adds the user's own


def check_methods(options: Options) -> None:
    """Check names and options of methods without a teacher or data. Raises UserError with the nearest known name."""
    for name, values in options.items():
        if name not in METHODS:
            hint = nearest(name, METHODS) or f"; known are {', '.join(METHODS)}"
            raise UserError(
                f"unknown method {name!r}{hint} (see `detdistill list methods`; your own needs --import FILE)"
            )
        configure(name, values)


def configure(name: str, options: Mapping[str, Any]) -> tuple[Any, Schedule]:
    """The method's `Config` and the schedule of its weight. Options that are not given keep their defaults.

    Raises UserError that names the option if it is unknown or has a wrong value.
    """
    kinds = (METHODS[name].Config, Schedule)
    owner = {item.name: kind for kind in kinds for item in fields(kind)}
    for option in options:
        if option not in owner:
            hint = nearest(option, owner)
            raise UserError(f"methods.{name}: unknown option {option!r}{hint} (known: {', '.join(owner)})")
    parts = [{option: value for option, value in options.items() if owner[option] is kind} for kind in kinds]
    return _filled(name, kinds[0], parts[0]), _filled(name, Schedule, parts[1])


def _filled(name: str, kind: type[Any], options: Mapping[str, Any]) -> Any:
    """The dataclass `kind` with these options, after their types are checked."""
    hints = get_type_hints(kind)
    values = {
        option: None if value == "none" and NoneType in get_args(hints[option]) else value
        for option, value in options.items()
    }
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(["methods", name, *[str(part) for part in first["loc"] if part in hints][:1]])
        if first["type"] == "missing":
            raise UserError(f"{field} is missing: it has no default; set it with --{field} VALUE") from None
        message = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        raise UserError(f"{field} is {first['input']!r}: {message}") from None


def resolve(options: Options, student: DetectorInfo, teacher: DetectorInfo) -> dict[str, dict[str, Any]]:
    """Every option of each method and its schedule: the user's value, else the published preset, else the default."""
    resolved = {}
    for name, values in options.items():
        published = preset(name, student, teacher, options, values)
        config, schedule = configure(name, merge(published, values))
        resolved[name] = {**asdict(config), **asdict(schedule)}
    return resolved


def build_methods(options: Options, student: DetectorInfo, teacher: DetectorInfo) -> list[Method]:
    """The methods of a resolved recipe. Raises UserError with the reason if a method can't serve this pair."""
    methods = []
    for name, values in options.items():
        method = METHODS[name].build(configure(name, values)[0], student, teacher)
        if not isinstance(method, Method):
            kind = type(method).__name__
            raise UserError(
                f"method {name}: its `build` returned {kind}, not a method; return an instance of the class"
            )
        methods.append(method)
    return methods


def schedules(options: Options) -> dict[str, Schedule]:
    """The schedule of each method's weight in a resolved recipe."""
    return {name: configure(name, values)[1] for name, values in options.items()}


def pair(student: Detector, teacher: Detector, methods: str | Sequence[str] | Options) -> Distillation:
    """The `Distillation` of a student by these methods, with the options published for this pair, as the commands use.

    methods: names, such as "pkd,crosskd", or a mapping from names to options, such as {"pkd": {"weight": 4}}. Options
    include those of the schedule: `warmup_steps`, `stop`, `decay` and `balance`. The teacher is not part of the result.
    Raises UserError if a name or an option is unknown, or if a method can't serve this pair.
    """
    if isinstance(methods, str):
        methods = [name for part in methods.split(",") if (name := part.strip())]
    options = methods if isinstance(methods, Mapping) else {name: {} for name in methods}
    check_methods(options)
    resolved = resolve(options, student.info, teacher.info)
    return Distillation(student, build_methods(resolved, student.info, teacher.info), schedules(resolved))


def served(methods: Iterable[str] | None = None) -> dict[str, list[str]]:
    """For each method (None: all), the heads that it serves if student and teacher both have this head.

    A head of the user's own is left out if it can't be built small, on a resnet18.
    """
    chosen = METHODS if methods is None else methods
    infos = {head: _small_info(head) for head in DETECTORS}
    return {
        name: [head for head, info in infos.items() if info is not None and serves(name, info, info)] for name in chosen
    }


def serves(method: str, student: DetectorInfo, teacher: DetectorInfo) -> bool:
    """True if the method, with its published options, can distill between the two detectors."""
    try:
        build_methods(resolve({method: {}}, student, teacher), student, teacher)
    except UserError:
        return False
    return True


@cache
def _small_info(head: str) -> DetectorInfo | None:
    """The info of a small detector with this head, which has to be built for that."""
    config = ModelConfig(name=f"{head}:resnet18", channels=32, queries=8, backbone_weights="none")
    try:
        return build(config, ("a", "b")).info
    except Exception:
        if head in BUILT_IN:
            raise
        return None
