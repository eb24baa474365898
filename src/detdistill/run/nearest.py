"""Which methods serve a pair, and for the others the nearest change with which they would. It is found by trying."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from detdistill.detectors.build import build, split_name
from detdistill.detectors.registry import DETECTORS
from detdistill.errors import UserError
from detdistill.methods import METHODS, Method
from detdistill.recipe import ModelConfig
from detdistill.run.pairing import Options, build_methods, resolve, served, serves
from detdistill.types import DetectorInfo

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Served:
    """A method for the pair. method: built, or None if it can't serve the pair.

    reason: its refusal, without its name; empty if it serves. nearest: a change with which it would serve, or empty.
    instead: methods of the same group that serve the pair as it is.
    """

    name: str
    group: str
    options: Values
    method: Method | None
    reason: str = ""
    nearest: str = ""
    instead: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant:
    """A change of the pair. text: how to make it, in words or flags."""

    text: str
    options: Values
    student: DetectorInfo
    teacher: DetectorInfo


class Models:
    """The infos of the student with other fields. Each is built once, because only a built detector has an info."""

    def __init__(self, model: ModelConfig | None, classes: tuple[str, ...]) -> None:
        """model: the student's config as HEAD:BACKBONE; None if it is not known."""
        self.model, self.classes = model, classes
        self._infos: dict[str, DetectorInfo | None] = {}

    def info(self, **changed: Any) -> DetectorInfo | None:
        """The info of the student with these fields; None if it can't be built."""
        if self.model is None:
            return None
        if changed.keys() == {"name"} and self.model.edges:
            changed["edges"] = False  # not every head has it
        config = self.model.model_copy(update={**changed, "backbone_weights": "none", "options": {}})
        key = config.model_dump_json()
        if key not in self._infos:
            try:
                self._infos[key] = build(config, self.classes).info
            except Exception:  # a head of the user's own may fail in any way; it is only no alternative then
                self._infos[key] = None
        return self._infos[key]


def find_served(
    options: Options, student: DetectorInfo, teacher: DetectorInfo, model: ModelConfig | None
) -> dict[str, Served]:
    """Every method of `options` by name, built or with the reason and the nearest change.

    model: the student's config as HEAD:BACKBONE, from which its variants are built.
    """
    found: dict[str, Served] = {}
    for name, values in options.items():
        group = METHODS[name].group
        method, reason = _attempt(name, values, student, teacher)
        found[name] = Served(name, group, values, method, reason)
    models = Models(model, student.classes)
    for name, entry in found.items():
        if entry.method is None:
            nearest = _nearest(name, entry.options, student, teacher, models)
            found[name] = replace(entry, nearest=nearest, instead=_instead(entry, student, teacher))
    return found


def _instead(entry: Served, student: DetectorInfo, teacher: DetectorInfo) -> tuple[str, ...]:
    """The methods of the same group that serve the pair with their published options."""
    group = [name for name, method in METHODS.items() if method.group == entry.group and name != entry.name]
    return tuple(name for name in group if serves(name, student, teacher))


def _attempt(name: str, values: Values, student: DetectorInfo, teacher: DetectorInfo) -> tuple[Method | None, str]:
    """The method for these detectors, or None and the reason why it does not serve them."""
    try:
        return build_methods(resolve({name: values}, student, teacher), student, teacher)[0], ""
    except UserError as error:
        return None, str(error).removeprefix(f"method {name}: ")


def _nearest(name: str, values: Values, student: DetectorInfo, teacher: DetectorInfo, models: Models) -> str:
    """The text of the first variant that the method serves, or empty."""
    for variant in _variants(name, values, student, teacher, models):
        if _attempt(name, variant.options, variant.student, variant.teacher)[0] is not None:
            return variant.text
    heads = served([name])[name]
    return f"student and teacher both with the head {heads[0]}" if heads else ""


def _variants(
    name: str, values: Values, student: DetectorInfo, teacher: DetectorInfo, models: Models
) -> Iterator[Variant]:
    """Changes of the pair, the smallest first: an option, the student's fields, its head, the teacher."""
    for option, value in _other_options(name, values, student, teacher):
        flag = f"--methods.{name}.{option.replace('_', '-')} {_text(value)}"
        yield Variant(flag, {**values, option: value}, student, teacher)
    for changed in _other_fields(student, teacher, models.model):
        if (info := models.info(**changed)) is not None:
            flags = [f"--model.{field.replace('_', '-')} {_text(value)}" for field, value in changed.items()]
            yield Variant(f"a student with {' '.join(flags)}", values, info, teacher)
    for head, info in _other_heads(student, teacher, models):
        yield Variant(f"a student with the head {head}", values, info, teacher)
    if student.classes != teacher.classes:
        known = replace(teacher, classes=student.classes)
        yield Variant("a teacher like this one that knows the student's classes", values, student, known)
    for head in sorted(DETECTORS, key=lambda head: head != student.kind):
        if (info := models.info(**_named(head, models.model))) is not None and head != teacher.kind:
            yield Variant(f"a teacher with the head {head}", values, student, info)


def _other_options(
    name: str, values: Values, student: DetectorInfo, teacher: DetectorInfo
) -> Iterator[tuple[str, Any]]:
    """Options of the method with another value, one at a time: switches, choices, and one of several weights as 0."""
    kind = METHODS[name].Config
    hints = get_type_hints(kind)
    now = resolve({name: values}, student, teacher)[name]
    weights = [item.name for item in fields(kind) if item.name.startswith("weight_") and now[item.name]]
    for option in weights if len(weights) > 1 else ():
        yield option, 0.0
    for item in fields(kind):
        hint, value = hints[item.name], now[item.name]
        choices = (True, False) if hint is bool else get_args(hint) if get_origin(hint) is Literal else ()
        for choice in choices:
            if choice != value and item.name not in values:
                yield item.name, choice


def _other_fields(student: DetectorInfo, teacher: DetectorInfo, model: ModelConfig | None) -> Iterator[dict[str, Any]]:
    """Fields of the student's config that make it like the teacher, one at a time and then all."""
    if model is None:
        return
    wanted: dict[str, Any] = {}
    if student.strides != teacher.strides:
        wanted["strides"] = teacher.strides
    if teacher.edges is not None and student.edges is None:
        wanted["edges"] = True
    if teacher.towers is not None and student.towers is not None:
        if student.towers.channels != teacher.towers.channels:
            wanted["channels"] = teacher.towers.channels
        if student.towers.depth != teacher.towers.depth:
            wanted["tower_depth"] = teacher.towers.depth
    for field, value in wanted.items():
        yield {field: value}
    if len(wanted) > 1:
        yield wanted


def _other_heads(student: DetectorInfo, teacher: DetectorInfo, models: Models) -> Iterator[tuple[str, DetectorInfo]]:
    """Students with another head, the teacher's first: with the student's own strides, then with the teacher's."""
    for head in sorted(DETECTORS, key=lambda head: head != teacher.kind):
        named = _named(head, models.model)
        if head == student.kind or not named:
            continue
        if (info := models.info(**named)) is not None:
            yield head, info
        if teacher.strides != student.strides:
            info = models.info(**named, strides=teacher.strides)
            if info is not None:
                yield f"{head} and --model.strides {_text(teacher.strides)}", info


def _named(head: str, model: ModelConfig | None) -> dict[str, Any]:
    """The fields of a student with this head on its own backbone."""
    return {} if model is None else {"name": f"{head}:{split_name(model.name)[1]}"}


def _text(value: Any) -> str:
    """A value as a flag has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
