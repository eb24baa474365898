"""HEAD:BACKBONE to a detector."""

from collections.abc import Callable, Sequence
from importlib import import_module

from detdistill.detectors.dense.atss import ATSS
from detdistill.detectors.dense.gfl import GFL
from detdistill.detectors.torchvision.faster_rcnn import faster_rcnn
from detdistill.detectors.torchvision.fcos import fcos
from detdistill.detectors.torchvision.mask_rcnn import mask_rcnn
from detdistill.detectors.torchvision.retinanet import retinanet
from detdistill.errors import UserError, nearest
from detdistill.recipe import ModelConfig
from detdistill.types import Detector

Builder = Callable[[ModelConfig, str, Sequence[str]], Detector]


def _lazy(module: str, name: str, says: str) -> Builder:
    """A builder whose module, which imports transformers (seconds), is imported when it is called. says: its first line, for lists."""

    def build_family(config: ModelConfig, backbone: str, classes: Sequence[str]) -> Detector:
        return getattr(import_module(f"detdistill.detectors.{module}"), name)(config, backbone, classes)

    build_family.__doc__ = says
    return build_family


DETECTORS: dict[str, Builder] = {
    "retinanet": retinanet,
    "fcos": fcos,
    "atss": ATSS,
    "gfl": GFL,
    "faster_rcnn": faster_rcnn,
    "mask_rcnn": mask_rcnn,
    "detr": _lazy("transformers.detr", "detr", "DETR of transformers, one level."),
    "conditional_detr": _lazy(
        "transformers.conditional_detr", "conditional_detr", "Conditional DETR of transformers, one level."
    ),
    "deformable_detr": _lazy(
        "transformers.deformable_detr",
        "deformable_detr",
        "Deformable DETR of transformers, plain, with box refinement or two-stage.",
    ),
    "dab_detr": _lazy("transformers.dab_detr", "dab_detr", "DAB-DETR of transformers, one level."),
    "rt_detr": _lazy("transformers.rt_detr", "rt_detr", "RT-DETR of transformers."),
    "rt_detr_v2": _lazy("transformers.rt_detr", "rt_detr_v2", "RT-DETRv2 of transformers."),
    "d_fine": _lazy("transformers.d_fine", "d_fine", "D-FINE of transformers."),
    "adamixer": _lazy("adamixer.adamixer", "adamixer", "AdaMixer, ours."),
}

DENSE = ("retinanet", "fcos", "atss", "gfl")  # heads with towers
LEARNED = (
    "detr",
    "conditional_detr",
    "deformable_detr",
    "dab_detr",
    "adamixer",
)  # heads with queries that are parameters
SETS = (*LEARNED, "rt_detr", "rt_detr_v2", "d_fine")  # heads with queries, those that draw them from the image too
STRIDES: dict[str, tuple[int, ...]] = {
    "detr": (32,),
    "conditional_detr": (32,),
    "deformable_detr": (8, 16, 32, 64),
    "dab_detr": (32,),
    "rt_detr": (8, 16, 32),
    "rt_detr_v2": (8, 16, 32),
    "d_fine": (8, 16, 32),
    "adamixer": (4, 8, 16, 32),
}  # as published, where they aren't the recipe's default


def split_name(name: str) -> tuple[str, str]:
    """HEAD:BACKBONE in two. Raises UserError naming the nearest head."""
    head, colon, backbone = name.partition(":")
    if not colon or not backbone:
        heads = ", ".join(DETECTORS)
        raise UserError(
            f"model {name!r}: neither a run folder nor HEAD:BACKBONE, such as gfl:resnet18 (heads: {heads})"
        )
    if head not in DETECTORS:
        raise UserError(
            f"model {name!r}: there is no head {head!r}{nearest(head, DETECTORS)} (heads: {', '.join(DETECTORS)})"
        )
    return head, backbone


def filled(config: ModelConfig) -> ModelConfig:
    """With the strides its head was published with, where none are given."""
    head = config.name.partition(":")[0]
    if "strides" in config.model_fields_set or head not in STRIDES:
        return config
    return config.model_copy(update={"strides": STRIDES[head]})


def build(config: ModelConfig, classes: Sequence[str]) -> Detector:
    """A detector with fresh heads for `classes`, in this order. Raises UserError for what the head or backbone can't do."""
    head, backbone = split_name(config.name)
    if head not in DENSE and (config.edges or config.norm != "default"):
        field = "edges" if config.edges else f"norm {config.norm}"
        raise UserError(
            f"model.{field}: {head} has no towers and no dense regression for it; take one of {', '.join(DENSE)}, or leave it out"
        )
    for field in ("box_refine", "two_stage"):
        if getattr(config, field) and head != "deformable_detr":
            raise UserError(f"model.{field}: is a variant of deformable_detr, and the model is {head}; leave it out")
    for field in ("encoder_layers", "decoder_layers"):
        if getattr(config, field) is not None and (head not in SETS or (head, field) == ("adamixer", "encoder_layers")):
            raise UserError(f"model.{field}: {head} has none; leave it out, or take one of {', '.join(SETS)}")
    return DETECTORS[head](filled(config), backbone, tuple(classes))
