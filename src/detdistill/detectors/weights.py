"""Weights into detectors, strictly. A teacher silently not loaded is the commonest failure of the field: whatever does not fit is refused."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torchvision.models.detection as host
from torch import Tensor, nn
from torchvision.models import get_model_weights

from detdistill.detectors.backbone import reachable, read_state, unmatched_tensors
from detdistill.detectors.build import build
from detdistill.detectors.torchvision.faster_rcnn import FasterRCNN
from detdistill.detectors.torchvision.fcos import FCOS
from detdistill.detectors.torchvision.mask_rcnn import adapt as mask_rcnn
from detdistill.detectors.torchvision.retinanet import RetinaNet
from detdistill.detectors.vit import STRIDE, feature_teacher, is_vit_folder
from detdistill.errors import UserError, nearest
from detdistill.recipe import ModelConfig
from detdistill.types import Detector

COCO_COLUMNS = 91  # torchvision's COCO weights index columns by category id, with gaps
Adapter = Callable[[nn.Module, Sequence[str], Sequence[int], Sequence[int]], Detector]


@dataclass(frozen=True)
class Pretrained:
    """A torchvision builder that we adapt. classifier: the bias whose length counts the class columns (times anchors).
    zero_eps: the published weights were trained with frozen norms of eps 0. background: whether column 0 is the background."""

    adapter: Adapter
    strides: tuple[int, ...]
    classifier: str
    anchors: int = 1
    zero_eps: bool = False
    background: bool = False


_DENSE = (8, 16, 32, 64, 128)
_TWO_STAGE = (4, 8, 16, 32, 64)
_SCORES = "head.classification_head.cls_logits.bias"
_ROI = "roi_heads.box_predictor.cls_score.bias"
# Its Faster R-CNNs on MobileNetV3 are not here: two of their levels have stride 32, and levels are told apart by their strides.
TORCHVISION: dict[str, Pretrained] = {
    "retinanet_resnet50_fpn": Pretrained(RetinaNet, _DENSE, _SCORES, anchors=9, zero_eps=True),
    "retinanet_resnet50_fpn_v2": Pretrained(RetinaNet, _DENSE, _SCORES, anchors=9),
    "fcos_resnet50_fpn": Pretrained(FCOS, _DENSE, _SCORES),
    "fasterrcnn_resnet50_fpn": Pretrained(FasterRCNN, _TWO_STAGE, _ROI, zero_eps=True, background=True),
    "fasterrcnn_resnet50_fpn_v2": Pretrained(FasterRCNN, _TWO_STAGE, _ROI, background=True),
    "maskrcnn_resnet50_fpn": Pretrained(mask_rcnn, _TWO_STAGE, _ROI, zero_eps=True, background=True),
    "maskrcnn_resnet50_fpn_v2": Pretrained(mask_rcnn, _TWO_STAGE, _ROI, background=True),
}


@dataclass(frozen=True)
class LoadReport:
    """How a state dict met a module: number of tensors matched, and the names of the others."""

    source: str
    matched: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    def __str__(self) -> str:
        counts = f"{self.matched} tensors matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected"
        return f"{self.source}: {counts}, {len(self.mismatched)} of another shape"

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> LoadReport:
    """The state into the module, in place. Raises UserError that tells the counts and the first of `unmatched_tensors`, where there are any."""
    own = module.state_dict()
    odd = unmatched_tensors(own, state)
    matched = len(own.keys() & state.keys()) - len(odd["of another shape"])
    report = LoadReport(source, matched, odd["missing"], odd["unexpected"], odd["of another shape"])
    if not report.complete:
        kind, first = next((kind, names[0]) for kind, names in odd.items() if names)
        raise UserError(
            f"{report}; the first {kind} is {first!r}: these are not its weights, or it was built otherwise (say how by "
            "--teacher.model.channels and the like, for `evaluate` by --model.channels)"
        )
    module.load_state_dict(dict(state), strict=False)
    return report


def load_teacher(path: str, classes: Sequence[str], model: ModelConfig = ModelConfig()) -> tuple[Detector, LoadReport]:
    """`torchvision:NAME` (its published weights), `torchvision:NAME=FILE`, `hf:NAME` of the hub, `hf:FOLDER` written by transformers,
    `HEAD:BACKBONE=FILE` (built as `model` says), or a ViT that gives features only: `timm:NAME`, `timm:NAME=FILE`, an `hf:FOLDER` with one.

    classes: the run's. A file with as many columns has these; torchvision's own weights have COCO's, those of `hf:` the labels of their config.
    Raises UserError where it can't be had or doesn't fit.
    """
    if path.startswith("timm:") or (path.startswith("hf:") and is_vit_folder(Path(path.removeprefix("hf:")))):
        given = model.strides if model.strides != ModelConfig().strides else (STRIDE,)
        if len(given) > 1:
            raise UserError(
                f"{path}: teacher.model.strides {given}: a ViT gives one level; give its stride alone, such as 16"
            )
        features = feature_teacher(path, given[0])
        return cast(Detector, features), LoadReport(path, len(features.state_dict()), (), (), ())
    if path.startswith("hf:"):
        from detdistill.detectors.transformers.load import load  # transformers takes seconds to import

        loaded, matched = load(path.removeprefix("hf:"), classes, model)
        return loaded, LoadReport(path, matched, (), (), ())
    name, _, file = path.partition("=")
    if name.startswith("torchvision:"):
        return _load_torchvision(name.removeprefix("torchvision:"), file, classes)
    if not file:
        raise UserError(
            f"{path}: not a run folder; give one, torchvision:NAME, torchvision:NAME=FILE, hf:NAME, hf:FOLDER, timm:NAME or "
            "HEAD:BACKBONE=FILE"
        )
    detector = build(model.model_copy(update={"name": name, "backbone_weights": "none"}), classes)
    state = read_state(Path(file), "weights")
    own = detector.state_dict()
    prefix = "model." if not own.keys() & state.keys() else ""  # the host library's own state dict
    return detector, load_strictly(detector, {prefix + key: value for key, value in state.items()}, file)  # type: ignore[arg-type]


def _load_torchvision(name: str, file: str, classes: Sequence[str]) -> tuple[Detector, LoadReport]:
    if name not in TORCHVISION:
        raise UserError(
            f"torchvision:{name}: not adapted{nearest(name, TORCHVISION)} (there are {', '.join(TORCHVISION)})"
        )
    known = TORCHVISION[name]
    weights = get_model_weights(name).DEFAULT
    state = read_state(Path(file), "weights") if file else _published(name, weights)
    if known.classifier not in state or len(state[known.classifier]) % known.anchors:
        raise UserError(f"{file}: not a state dict of {name}, judging by its tensor {known.classifier!r}")
    columns = len(state[known.classifier]) // known.anchors
    names, index = _columns(columns, known, weights.meta["categories"], classes, f"{file or name}")
    model = getattr(host, name)(weights=None, weights_backbone=None, num_classes=columns)
    if known.zero_eps and not any(key.endswith("num_batches_tracked") for key in state):
        for norm in (
            model.modules()
        ):  # torchvision does so to its frozen norms alone, which a model built without weights hasn't got
            if isinstance(norm, nn.BatchNorm2d):
                norm.eps = 0.0
    report = load_strictly(model, state, file or f"torchvision {name}")
    return known.adapter(model, names, known.strides, index), report


def _columns(
    columns: int, known: Pretrained, categories: Sequence[str], classes: Sequence[str], source: str
) -> tuple[tuple[str, ...], list[int]]:
    """Class names of the weights and the column of each."""
    first = 1 if known.background else 0
    if columns == COCO_COLUMNS and len(classes) + first != COCO_COLUMNS:
        index = [column for column, category in enumerate(categories) if category not in ("__background__", "N/A")]
        return tuple(categories[column] for column in index), index
    if columns == len(classes) + 1 or (columns == len(classes) and not known.background):
        start = columns - len(classes)
        return tuple(classes), list(range(start, columns))
    raise UserError(
        f"{source}: has {columns} class columns, the data have {len(classes)} classes; the teacher must be trained on them"
    )


def _published(name: str, weights: object) -> Mapping[str, Tensor]:
    url = weights.url  # type: ignore[attr-defined]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    remedy = f"give torchvision:{name}=FILE with the weights of {url}"
    if not cached.exists() and not reachable("download.pytorch.org"):
        raise UserError(
            f"torchvision:{name}: the weights are not on this machine and download.pytorch.org can't be reached; {remedy}"
        )
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)  # type: ignore[attr-defined]
    except Exception as error:  # the socket layer, the hash check and the unpickler each have their own
        raise UserError(
            f"torchvision:{name}: can't fetch the weights ({str(error).splitlines()[0][:120]}); {remedy}"
        ) from None
