"""The table of all detectors, and a page for each."""

from collections.abc import Iterator
from dataclasses import fields

from detdistill.detectors.registry import DETECTORS, DetectorRecord
from detdistill.detectors.weights import TORCHVISION
from detdistill.methods import METHODS
from detdistill.recipe import ModelConfig

from .flow import detector_info, heads_served
from .text import NOTE, choices, joined, table, value

OVERVIEW = f"""# Detectors

{NOTE}

A model to train is `HEAD:BACKBONE`. BACKBONE is a timm model with feature maps at the strides of the pyramid, see
[backbones](backbones.md). The fields are those of `model` in the [reference](reference.md#model); options of one
detector alone are set with `--model.options.NAME VALUE`. A detector of your own is [one file](own_detector.md).
"""

PRETRAINED = """
Pretrained detectors can teach, be evaluated and predict. Of torchvision, with its COCO weights or with a file: {names}.
Of transformers, as `hf:NAME` from the hub or `hf:FOLDER`: {families}. A ViT teaches by features alone: `timm:NAME`,
`timm:NAME=FILE`, or `hf:FOLDER`.
"""

EXPORT = "[its limits](../guide.md#handing-a-detector-to-transformers)"

WEIGHTS = """The package contains no weights, and its license does not cover those that you load. timm states the
license of each backbone (`timm.get_pretrained_cfg("resnet18").license` is `apache-2.0`, that of a DINOv3 is
`dinov3-license`). {host}"""


def detectors() -> str:
    """The content of detectors.md."""
    rows = [
        (f"[`{name}`](detectors/{name}.md)", record.summary, record.group, _strides(record), ", ".join(_fields(record)))
        for name, record in DETECTORS.items()
    ]
    lines = [OVERVIEW, *table(("detector", "description", "kind", "default strides", "fields of its own"), rows)]
    names = ", ".join(f"`torchvision:{name}`" for name in TORCHVISION)
    families = ", ".join(f"`{name}`" for name, record in DETECTORS.items() if record.host is not None)
    return "\n".join(lines) + "\n" + PRETRAINED.format(names=names, families=families)


def detector_page(name: str) -> str:
    """The content of detectors/NAME.md."""
    record, info = DETECTORS[name], detector_info(name)
    facts = [
        ("kind", record.group),
        ("default strides", _strides(record)),
        ("class scores", info.activation),
        ("feature maps that methods can read", ", ".join(f"`{pyramid}`" for pyramid in info.channels)),
        ("parts that methods can read or continue", ", ".join(_parts(name)) or "none"),
        ("as a teacher, pretrained", _pretrained(name, record)),
        ("export to a folder of transformers", "no" if record.host is None else f"yes, see {EXPORT}"),
    ]
    if record.learning_rate is not None:
        facts.append(("published learning rate of AdamW", f"{record.learning_rate:g}"))
    served = [method for method in METHODS if name in heads_served()[method]]
    lines = [f"# {name}", "", f"<!-- {NOTE} -->", "", record.summary, "", *table(("property", "value"), facts), ""]
    lines += ["```sh", f"detdistill train --model {name}:resnet18 --data DATA --out runs/{name}", "```", ""]
    lines += ["## Fields of its own", ""]
    lines += ["Every detector reads the [common fields](../reference.md#model). This one also reads:", ""]
    lines += [*_field_table(record), ""]
    lines += ["## Methods that serve it", "", "Between two detectors of this kind, with published options:", ""]
    lines += [*(f"* [`{method}`](../methods/{method}.md): {METHODS[method].copies}" for method in served), ""]
    lines += ["Between different kinds, see [what each method needs](../methods.md).", ""]
    lines += ["## License of weights", "", WEIGHTS.format(host=_license(name, record))]
    return "\n".join(lines).rstrip() + "\n"


def _strides(record: DetectorRecord) -> str:
    return ", ".join(map(str, record.strides or ModelConfig.model_fields["strides"].default))


def _fields(record: DetectorRecord) -> list[str]:
    kind = record.options_class()
    own = [f"`{field}`" for field in ModelConfig.model_fields if field in record.options]
    return own + ([f"`options.{item.name}`" for item in fields(kind)] if kind is not None else [])


def _field_table(record: DetectorRecord) -> Iterator[str]:
    rows = [
        (f"`model.{field}`", value(info.default), joined(info.description, choices(info.annotation)))
        for field, info in ModelConfig.model_fields.items()
        if field in record.options
    ]
    kind = record.options_class()
    rows += [(f"`model.options.{item.name}`", value(item.default), "") for item in (fields(kind) if kind else ())]
    return table(("field", "default", "meaning"), rows)


def _parts(name: str) -> list[str]:
    info = detector_info(name)
    found = []
    if info.grid is not None:
        found.append(f"dense grid, {info.grid.anchors_per_cell} per cell (assigner `{info.grid.assigner}`)")
    if info.towers is not None:
        found.append("towers (`towers.resume`)")
    if info.edges is not None:
        found.append(f"side distributions of {info.edges.bins} bins")
    if info.queries is not None:
        found.append(f"queries of {', '.join(sorted(info.queries.parts))} (`queries.redecode`)")
    if info.proposals is not None:
        found.append("RoI head (`proposals.classify`)")
    return found


def _pretrained(name: str, record: DetectorRecord) -> str:
    if record.host is not None:
        return "`hf:NAME` or `hf:FOLDER`"
    prefixes = {"retinanet": "retinanet", "fcos": "fcos", "faster_rcnn": "fasterrcnn", "mask_rcnn": "maskrcnn"}
    models = [model for model in TORCHVISION if name in prefixes and model.startswith(prefixes[name])]
    return ", ".join(f"`torchvision:{model}`" for model in models) or "none; train one"


def _license(name: str, record: DetectorRecord) -> str:
    if record.host is not None:
        return "The license of a checkpoint of the hub is on its model card."
    if _pretrained(name, record).startswith("`torchvision"):
        return "The license of torchvision's weights is stated in its repository; they were trained on COCO."
    return "There are no published detectors of this implementation; a detector that you train is yours."
