"""HEAD:BACKBONE to a detector."""

from collections.abc import Callable, Sequence

from detdistill.detectors.dense.atss import ATSS
from detdistill.detectors.dense.gfl import GFL
from detdistill.detectors.protocol import Detector
from detdistill.detectors.torchvision.faster_rcnn import faster_rcnn
from detdistill.detectors.torchvision.fcos import fcos
from detdistill.detectors.torchvision.mask_rcnn import mask_rcnn
from detdistill.detectors.torchvision.retinanet import retinanet
from detdistill.errors import UserError, nearest
from detdistill.recipe import ModelConfig

Builder = Callable[[ModelConfig, str, Sequence[str]], Detector]


def deformable_detr(config: ModelConfig, backbone: str, classes: Sequence[str]) -> Detector:
    """Deformable DETR of transformers, from config and offline, on a timm backbone."""
    from detdistill.detectors.transformers import deformable_detr as family  # transformers takes seconds to import

    return family.deformable_detr(config, backbone, classes)


DETECTORS: dict[str, Builder] = {
    "retinanet": retinanet,
    "fcos": fcos,
    "atss": ATSS,
    "gfl": GFL,
    "faster_rcnn": faster_rcnn,
    "mask_rcnn": mask_rcnn,
    "deformable_detr": deformable_detr,
}


DENSE = ("retinanet", "fcos", "atss", "gfl")  # heads with towers


def split_name(name: str) -> tuple[str, str]:
    """HEAD:BACKBONE in two. Raises UserError naming the nearest head."""
    head, colon, backbone = name.partition(":")
    if not colon or not backbone:
        heads = ", ".join(DETECTORS)
        raise UserError(f"model {name!r}: neither a run folder nor HEAD:BACKBONE, such as gfl:resnet18 (heads: {heads})")
    if head not in DETECTORS:
        raise UserError(f"model {name!r}: there is no head {head!r}{nearest(head, DETECTORS)} (heads: {', '.join(DETECTORS)})")
    return head, backbone


def build(config: ModelConfig, classes: Sequence[str]) -> Detector:
    """A detector with fresh heads for `classes`, in this order. Raises UserError for what the head or backbone can't do."""
    head, backbone = split_name(config.name)
    if head not in DENSE and (config.edges or config.norm != "default"):
        field = "edges" if config.edges else f"norm {config.norm}"
        raise UserError(
            f"model.{field}: {head} has no towers and no dense regression for it; take one of {', '.join(DENSE)}, or leave it out"
        )
    return DETECTORS[head](config, backbone, tuple(classes))
