"""Build the detector that HEAD:BACKBONE names."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import NoneType
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from detdistill.detectors.freezing import freeze, with_freezing
from detdistill.detectors.registry import DETECTORS, DetectorRecord
from detdistill.detectors.statistics import pixel_statistics
from detdistill.errors import UserError, nearest
from detdistill.recipe import ModelConfig
from detdistill.types import Detector

VARIANTS = ("neck", "depthwise", "norm", "edges", "box_refine", "two_stage", "encoder_layers", "decoder_layers")
"""Fields of ModelConfig that change the architecture. A family that does not read such a field rejects any value of it
but the default."""
MEMBERS = ("info", "observe", "detect", "backbone_parameters")  # of every detector, besides those of nn.Module


def split_name(name: str) -> tuple[str, str]:
    """Split HEAD:BACKBONE into (head, backbone). Raises UserError, with a similar name, if the head is unknown."""
    head, colon, backbone = name.partition(":")
    heads = ", ".join(DETECTORS)
    if not colon or not backbone:
        problem = "is neither a run folder nor HEAD:BACKBONE, such as gfl:resnet18"
        raise UserError(f"model {name!r} {problem} (heads: {heads})")
    if head not in DETECTORS:
        hint = nearest(head, DETECTORS)
        remedy = f"heads: {heads}; for a head of your own add --import FILE"
        raise UserError(f"model {name!r}: unknown head {head!r}{hint} ({remedy})")
    return head, backbone


def with_defaults(config: ModelConfig) -> ModelConfig:
    """The config with the defaults that depend on its head and backbone, where the config sets nothing itself.

    These are the strides that the head was published with, the pixel statistics of the backbone, and its parts that do
    not train.
    """
    record = DETECTORS.get(config.name.partition(":")[0])
    if record is None:
        return config
    mean, std = pixel_statistics(config)
    defaults: dict[str, Any] = {"mean": mean, "std": std}
    if record.strides is not None and "strides" not in config.model_fields_set:
        defaults["strides"] = record.strides
    return with_freezing(config.model_copy(update=defaults))


def build(config: ModelConfig, classes: Sequence[str]) -> Detector:
    """Build a detector with a fresh head for `classes`, in this order.

    Raises UserError if the head or the backbone is unknown, or if an option does not fit them.
    """
    head, backbone = split_name(config.name)
    record = DETECTORS[head]
    ignored = fields_without_effect(config)
    for field in VARIANTS:
        if field in ignored:
            heads = ", ".join(name for name, family in DETECTORS.items() if field in family.options)
            remedy = f"leave it out, or choose one of the heads {heads}"
            raise UserError(f"model.{field}: {head} has no such option; {remedy}")
    options = family_options(head, record, config.options)
    config = with_defaults(config)
    detector = record.build(config, backbone, tuple(classes), **options)
    missing = [name for name in MEMBERS if not hasattr(detector, name)]
    if missing:
        raise UserError(
            f"model {config.name!r}: its builder returned {type(detector).__name__} without {', '.join(missing)}; "
            "return a detector as described in detdistill.types.Detector"
        )
    freeze(detector, config)
    remember(detector, config)
    return detector


def remember(detector: Detector, config: ModelConfig) -> None:
    """Keep the config that the detector was built from, for `config_of`."""
    detector.__dict__["built_from"] = with_defaults(config)


def config_of(detector: Detector) -> ModelConfig | None:
    """The config that `build` made the detector from, with its defaults; None if it was made otherwise."""
    config = getattr(detector, "built_from", None)
    return config if isinstance(config, ModelConfig) else None


def fields_read(head: str) -> frozenset[str]:
    """The fields of `ModelConfig` that a family reads: those of its record, and those that no record lists."""
    listed = frozenset[str]().union(*(record.options for record in DETECTORS.values()))
    return DETECTORS[head].options | (ModelConfig.model_fields.keys() - listed)


def fields_without_effect(config: ModelConfig) -> list[str]:
    """Names of the fields that differ from their defaults although the head does not read them."""
    read = fields_read(split_name(config.name)[0])
    return [
        name
        for name, field in ModelConfig.model_fields.items()
        if name not in read and getattr(config, name) != field.get_default(call_default_factory=True)
    ]


def rebuild(config: ModelConfig, classes: Sequence[str]) -> Detector:
    """Build the architecture of a trained detector. No backbone weights are downloaded: the caller loads all weights.

    What was frozen in its training stays frozen.
    """
    return build(with_defaults(config).model_copy(update={"backbone_weights": "none"}), classes)


def family_options(head: str, record: DetectorRecord, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that only this family has, converted to their types.

    head: name of the family, for messages. options: the values of --model.options.NAME.
    Raises UserError that names the field and the known options if an option is unknown or has a wrong value.
    """
    kind = record.options_class()
    known = [] if kind is None else [item.name for item in fields(kind)]
    for option in options:
        if option not in known:
            remedy = f" (known: {', '.join(known)})" if known else "; it has no options of its own, so leave it out"
            raise UserError(f"model.options.{option}: {head} has no such option{nearest(option, known)}{remedy}")
    if kind is None or not options:
        return {}
    hints = get_type_hints(kind)
    values = dict(options)
    for name, value in options.items():
        if value == "none" and NoneType in get_args(hints[name]):
            values[name] = None
    try:
        checked = TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(["model.options", *[str(part) for part in first["loc"] if part in hints][:1]])
        if first["type"] == "missing":
            raise UserError(f"{field} is missing: {head} has no default for it; set it with --{field} VALUE") from None
        message = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        raise UserError(f"{field} is {first['input']!r}: {message}") from None
    return {option: getattr(checked, option) for option in options}
