"""From HEAD:BACKBONE to a detector."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import NoneType
from typing import Any, cast, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from torch import nn

from detdistill.detectors.registry import DETECTORS, DetectorRecord
from detdistill.errors import UserError, nearest
from detdistill.recipe import ModelConfig
from detdistill.types import Detector

VARIANTS = ("norm", "edges", "box_refine", "two_stage", "encoder_layers", "decoder_layers")
"""Fields of ModelConfig that change the architecture of the families that read them. Other families refuse them."""


def split_name(name: str) -> tuple[str, str]:
    """HEAD:BACKBONE as (head, backbone). Raises UserError with the nearest head if there is no such head."""
    head, colon, backbone = name.partition(":")
    heads = ", ".join(DETECTORS)
    if not colon or not backbone:
        raise UserError(f"model {name!r} is neither a run folder nor HEAD:BACKBONE, such as gfl:resnet18 (heads: {heads})")
    if head not in DETECTORS:
        hint = nearest(head, DETECTORS)
        raise UserError(f"model {name!r}: unknown head {head!r}{hint} (heads: {heads}; your own head needs --import FILE)")
    return head, backbone


def with_default_strides(config: ModelConfig) -> ModelConfig:
    """The config with the strides that its head was published with, unless it names some."""
    record = DETECTORS.get(config.name.partition(":")[0])
    if record is None or record.strides is None or "strides" in config.model_fields_set:
        return config
    return config.model_copy(update={"strides": record.strides})


def build(config: ModelConfig, classes: Sequence[str]) -> Detector:
    """A detector with fresh heads for `classes`, in this order. Raises UserError if head, backbone or options do not fit."""
    head, backbone = split_name(config.name)
    record = DETECTORS[head]
    for field in VARIANTS:
        if field not in record.options and getattr(config, field) != ModelConfig.model_fields[field].default:
            readers = ", ".join(name for name, other in DETECTORS.items() if field in other.options)
            raise UserError(f"model.{field}: {head} has no such option; leave it out, or choose one of {readers}")
    options = family_options(head, record, config.options)
    return record.build(with_default_strides(config), backbone, tuple(classes), **options)


def rebuild(config: ModelConfig, classes: Sequence[str]) -> Detector:
    """The architecture of a trained detector, whose weights are loaded afterwards: no backbone weights are fetched.

    A set predictor whose backbone started from loaded weights keeps the norms of the backbone frozen, as in its training.
    """
    from detdistill.detectors.queries.detector import QueryDetector
    from detdistill.detectors.transformers.host import keeps_norms, thaw

    detector = build(config.model_copy(update={"backbone_weights": "none"}), classes)
    if isinstance(detector, QueryDetector) and keeps_norms(config):
        detector.frozen_norms = thaw(cast(nn.Module, detector.family.body()), frozen_norms=True)
    return detector


def family_options(head: str, record: DetectorRecord, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one family alone, with checked types. Raises UserError with the field and the known options."""
    kind = record.options_class()
    known = [] if kind is None else [item.name for item in fields(kind)]
    for option in options:
        if option not in known:
            has = f"its options are {', '.join(known)}" if known else "it has none"
            raise UserError(f"model.options.{option}: {head} has no such option{nearest(option, known)}; {has}")
    if kind is None or not options:
        return {}
    hints = get_type_hints(kind)
    values = {name: None if value == "none" and NoneType in get_args(hints[name]) else value for name, value in options.items()}
    try:
        checked = TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        option = next((str(part) for part in first["loc"] if part in hints), "options")
        message = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        raise UserError(f"model.options.{option} is {first['input']!r}: {message}") from None
    return {option: getattr(checked, option) for option in options}
