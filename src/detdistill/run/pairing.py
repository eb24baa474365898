"""Student, teacher and methods meet: what can be wrong between them is found here, before the first step."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from functools import cache
from types import NoneType
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from detdistill.detectors.build import build
from detdistill.detectors.registry import DETECTORS
from detdistill.engine.schedule import Schedule
from detdistill.errors import UserError, nearest
from detdistill.methods import METHODS, Method
from detdistill.methods.presets import preset
from detdistill.recipe import ModelConfig, merge
from detdistill.types import DetectorInfo

Options = Mapping[str, Mapping[str, Any]]


def check_methods(options: Options) -> None:
    """Names and options of methods, which need neither teacher nor data. Raises UserError with the nearest name."""
    for name, given in options.items():
        if name not in METHODS:
            near = nearest(name, METHODS) or f"; there are {', '.join(METHODS)}"
            raise UserError(f"unknown method {name!r}{near} (see `detdistill list methods`)")
        configure(name, given)


def configure(name: str, options: Mapping[str, Any]) -> tuple[Any, Schedule]:
    """The method's `Config` and the schedule of its weight with these options; the others keep their defaults. Raises UserError naming the
    option."""
    kinds = (METHODS[name].Config, Schedule)
    home = {item.name: kind for kind in kinds for item in fields(kind)}
    for option in options:
        if option not in home:
            raise UserError(
                f"methods.{name}: unknown option {option!r}{nearest(option, home)} (known: {', '.join(home)})"
            )
    config, schedule = (
        _filled(name, kind, {option: value for option, value in options.items() if home[option] is kind})
        for kind in kinds
    )
    return config, schedule


def _filled(name: str, kind: type[Any], options: Mapping[str, Any]) -> Any:
    """The dataclass `kind` with these options, their types checked."""
    hints = get_type_hints(kind)
    given = {
        option: None if value == "none" and NoneType in get_args(hints[option]) else value
        for option, value in options.items()
    }
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        option = next((str(part) for part in first["loc"] if part in hints), "options")
        raise UserError(
            f"methods.{name}.{option} is {first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        ) from None


def resolve(options: Options, student: DetectorInfo, teacher: DetectorInfo) -> dict[str, dict[str, Any]]:
    """Every option of every method, its own and those of its schedule: the default, under the published preset of the pair, under what is
    given."""
    full = {
        name: configure(name, merge(preset(name, student, teacher, options, given), given))
        for name, given in options.items()
    }
    return {name: {**asdict(config), **asdict(schedule)} for name, (config, schedule) in full.items()}


def build_methods(options: Options, student: DetectorInfo, teacher: DetectorInfo) -> list[Method]:
    """The methods of a resolved recipe. Raises UserError where one can't serve this pair, saying why."""
    return [METHODS[name].build(configure(name, given)[0], student, teacher) for name, given in options.items()]


def schedules(options: Options) -> dict[str, Schedule]:
    """How each method of a resolved recipe weighs as the run goes on."""
    return {name: configure(name, given)[1] for name, given in options.items()}


def served(methods: Iterable[str] = tuple(METHODS)) -> dict[str, list[str]]:
    """By method, the heads that it can teach among themselves, found out by asking it."""
    return {name: [head for head, info in _small_detectors().items() if _serves(name, info)] for name in methods}


@cache
def _small_detectors() -> Mapping[str, DetectorInfo]:
    """By head, what it says of itself; they are built for that."""
    return {
        head: build(
            ModelConfig(name=f"{head}:resnet18", channels=32, queries=8, backbone_weights="none"), ("a", "b")
        ).info
        for head in DETECTORS
    }


def _serves(method: str, info: DetectorInfo) -> bool:
    try:
        build_methods(resolve({method: {}}, info, info), info, info)
    except UserError:
        return False
    return True
