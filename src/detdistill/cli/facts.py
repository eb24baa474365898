"""What `detdistill list` knows, as mappings for JSON, collected from the code. It imports torch and takes seconds."""

from collections.abc import Collection, Sequence
from dataclasses import MISSING, Field, fields
from inspect import getdoc, getmodule
from typing import Any

Facts = dict[str, Any]


def all_detectors() -> list[Facts]:
    """The facts about every family of detectors, in the order of the registry."""
    from detdistill.detectors.registry import DETECTORS

    return [detector(name) for name in DETECTORS]


def all_methods() -> list[Facts]:
    """The facts about every method, in the order of the groups."""
    from detdistill.methods import by_group

    names = [method.name for methods in by_group().values() for method in methods]
    return methods(names)


def torchvision_names() -> list[str]:
    """The detectors of torchvision that can teach."""
    from detdistill.detectors.weights import TORCHVISION

    return list(TORCHVISION)


def detector(name: str) -> Facts:
    """One family of detectors: its kind of head, the strides it was published with, and its options."""
    from detdistill.detectors.build import fields_read
    from detdistill.detectors.registry import DETECTORS
    from detdistill.methods.method import option_meanings
    from detdistill.recipe import ModelConfig

    record = DETECTORS[name]
    strides = record.strides or ModelConfig.model_fields["strides"].default
    shown = fields_read(name) - {"name", "options"}
    options = []
    for field, info in ModelConfig.model_fields.items():
        if field in shown:
            default = strides if field == "strides" else info.default
            options.append(_option(f"--model.{field.replace('_', '-')}", in_words(default), info.description or ""))
    if (kind := record.options_class()) is not None:
        meanings = option_meanings(kind)
        for item in fields(kind):
            flag = f"--model.options.{item.name.replace('_', '-')}"
            options.append(_option(flag, _default(item), meanings[item.name]))
    return {
        "name": name,
        "summary": record.summary,
        "group": record.group,
        "strides": list(strides),
        "learned_queries": record.learned_queries,
        "in_transformers": record.host is not None,
        "options": options,
    }


def methods(names: Collection[str]) -> list[Facts]:
    """The methods of these names: what they read, learn and serve, and their options with published values."""
    from detdistill.run.pairing import served

    heads = served(names)
    return [_method(name, heads[name]) for name in names]


def _method(name: str, heads: Sequence[str]) -> Facts:
    from detdistill.engine.schedule import Schedule
    from detdistill.methods import METHODS
    from detdistill.methods.method import option_meanings
    from detdistill.methods.presets import published_values

    method = METHODS[name]
    meanings = option_meanings(method.Config) | option_meanings(Schedule)
    options = []
    for item in (*fields(method.Config), *fields(Schedule)):
        published = published_values(name, item.name, item.default, in_words)
        options.append({**_option(item.name, _default(item), meanings[item.name]), "published": published})
    return {
        "name": name,
        "summary": (getdoc(getmodule(method)) or "").split("\n", 1)[0] or method.__name__,
        "group": method.group,
        "heads": list(heads),
        "reads": method.reads,
        "learns": method.learns,
        "gain": method.gain,
        "paper": method.paper,
        "options": options,
    }


def backbones(names: Sequence[str], image_size: tuple[int, int]) -> list[Facts]:
    """The facts about timm models; operations are those of one image. Each takes a fraction of a second."""
    from detdistill.run.backbones import describe, normalization

    rows = []
    for name in names:
        facts = describe(name, image_size)
        rows.append(
            {
                "name": facts.name,
                "parameters": facts.parameters,
                "operations": facts.operations,
                "strides": list(facts.strides),
                "normalization": normalization(facts.statistics),
                "pretrained": bool(facts.has_weights),
                "remark": facts.remark,
            }
        )
    return rows


def in_words(value: Any) -> str:
    """A default as text: `none`, `true`, or numbers separated by commas."""
    if value is None:
        return "none"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _option(name: str, default: str, meaning: str) -> Facts:
    return {"name": name, "default": default, "meaning": meaning}


def _default(option: Field[Any]) -> str:
    """The default of an option; `-` if it has no fixed one, which only options of the user's own can lack."""
    return "-" if option.default is MISSING else in_words(option.default)
