"""Load teachers and other trained detectors from files, torchvision, transformers and timm.

Loading is strict: every tensor must fit. A teacher whose weights were silently not loaded would teach nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torchvision.models.detection as host
from torch import Tensor, nn
from torchvision.models import get_model_weights

from detdistill.detectors.build import build
from detdistill.detectors.state_dicts import reachable, unmatched_tensors
from detdistill.detectors.torchvision.faster_rcnn import FasterRCNN
from detdistill.detectors.torchvision.fcos import FCOS
from detdistill.detectors.torchvision.mask_rcnn import adapt as mask_rcnn
from detdistill.detectors.torchvision.retinanet import RetinaNet
from detdistill.detectors.torchvision.ssdlite import SSDLite, fit_tail
from detdistill.detectors.vit import DEFAULT_STRIDE, feature_teacher, is_vit_folder
from detdistill.detectors.weight_names import Weights, read_weights
from detdistill.errors import UserError, nearest
from detdistill.recipe import ModelConfig
from detdistill.types import Detector

COCO_COLUMNS = 91  # torchvision's COCO weights index class columns by category id, with gaps
UNNAMED = "the names of its classes are not known here; give a run folder, hf:FOLDER or weights of COCO's classes"
SHOWN = 8  # class names in a message
Adapter = Callable[[nn.Module, Sequence[str], Sequence[int], Sequence[int]], Detector]


@dataclass(frozen=True)
class HostModel:
    """A detector of torchvision that we adapt.

    adapter: our class or function for it.
    strides: of its levels, fine to coarse.
    classifier: name of the bias whose length is the number of class columns times `anchors`.
    anchors: anchors per cell that `classifier` counts.
    zero_eps: True if its published weights were trained with frozen norms whose eps is 0.
    background: True if column 0 is the background.
    fit: function that changes a built host to the variant whose state dict it gets, or None if there is one variant.
    """

    adapter: Adapter
    strides: tuple[int, ...]
    classifier: str
    anchors: int = 1
    zero_eps: bool = False
    background: bool = False
    fit: Callable[[nn.Module, Mapping[str, Tensor]], None] | None = None


_DENSE_STRIDES = (8, 16, 32, 64, 128)
_TWO_STAGE_STRIDES = (4, 8, 16, 32, 64)
_MOBILE_STRIDES = (32, 32, 64)
_DENSE_BIAS = "head.classification_head.cls_logits.bias"
_SSD_BIAS = "head.classification_head.module_list.0.1.bias"
_ROI_BIAS = "roi_heads.box_predictor.cls_score.bias"
TORCHVISION: dict[str, HostModel] = {
    "retinanet_resnet50_fpn": HostModel(RetinaNet, _DENSE_STRIDES, _DENSE_BIAS, anchors=9, zero_eps=True),
    "retinanet_resnet50_fpn_v2": HostModel(RetinaNet, _DENSE_STRIDES, _DENSE_BIAS, anchors=9),
    "fcos_resnet50_fpn": HostModel(FCOS, _DENSE_STRIDES, _DENSE_BIAS),
    "fasterrcnn_resnet50_fpn": HostModel(FasterRCNN, _TWO_STAGE_STRIDES, _ROI_BIAS, zero_eps=True, background=True),
    "fasterrcnn_resnet50_fpn_v2": HostModel(FasterRCNN, _TWO_STAGE_STRIDES, _ROI_BIAS, background=True),
    "fasterrcnn_mobilenet_v3_large_fpn": HostModel(FasterRCNN, _MOBILE_STRIDES, _ROI_BIAS, background=True),
    "fasterrcnn_mobilenet_v3_large_320_fpn": HostModel(FasterRCNN, _MOBILE_STRIDES, _ROI_BIAS, background=True),
    "maskrcnn_resnet50_fpn": HostModel(mask_rcnn, _TWO_STAGE_STRIDES, _ROI_BIAS, zero_eps=True, background=True),
    "maskrcnn_resnet50_fpn_v2": HostModel(mask_rcnn, _TWO_STAGE_STRIDES, _ROI_BIAS, background=True),
    "ssdlite320_mobilenet_v3_large": HostModel(SSDLite, (16,), _SSD_BIAS, anchors=6, background=True, fit=fit_tail),
}
"""The detectors of torchvision that --teacher torchvision:NAME accepts."""


@dataclass(frozen=True)
class LoadReport:
    """How a state dict fits a module: the number of tensors that match, and the names of those that do not.

    source: file or name of the state dict. mismatched: names of the tensors that have another shape.
    note: what was taken from the file and what was stripped from its names, or empty.
    """

    source: str
    matched: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    note: str = ""

    def __str__(self) -> str:
        counts = f"{self.matched} tensors matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected"
        note = f"; {self.note}" if self.note else ""
        return f"{self.source}: {counts}, {len(self.mismatched)} of another shape{note}"

    @property
    def complete(self) -> bool:
        """True if every tensor matches."""
        return not (self.missing or self.unexpected or self.mismatched)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str, note: str = "") -> LoadReport:
    """Load `state` into the module, in place.

    source: file or name of the state dict, for messages. note: see `LoadReport`.
    Raises UserError with the counts and the first tensor that does not match, if there is one.
    """
    expected = module.state_dict()
    unmatched = unmatched_tensors(expected, state)
    matched = len(expected.keys() & state.keys()) - len(unmatched["of another shape"])
    names = (unmatched["missing"], unmatched["unexpected"], unmatched["of another shape"])
    report = LoadReport(source, matched, *names, note)
    if not report.complete:
        kind, first = next((kind, names[0]) for kind, names in unmatched.items() if names)
        problem = f"first: {first!r} is {kind}; the weights do not match this architecture"
        remedy = "describe it with --teacher.model.channels and similar flags, or --model.channels for `evaluate`"
        raise UserError(f"{report}; {problem}: {remedy}")
    module.load_state_dict(dict(state), strict=False)
    return report


def load_teacher(path: str, classes: Sequence[str], model: ModelConfig = ModelConfig()) -> tuple[Detector, LoadReport]:
    """Load a trained detector, or a ViT that gives features only.

    path: one of these:
      `torchvision:NAME`: published weights. `torchvision:NAME=FILE`: weights of this model.
      `hf:NAME`: a detector of the Hugging Face hub. `hf:FOLDER`: a detector or a ViT written by transformers.
      `HEAD:BACKBONE=FILE`: a detector built from `model`, with the weights of the file.
      `timm:NAME`, `timm:NAME=FILE`: a ViT of timm.
      FILE can be what `weight_names.read_weights` reads.
    classes: the classes of the run; empty if there are no data. A file with as many class columns is assumed to have
      these classes. The published weights of torchvision have COCO's classes, and `hf:` weights have the labels of
      their config.
    Raises UserError if there is no such model, or if its weights can't be loaded or do not fit.
    """
    if path.startswith("timm:") or (path.startswith("hf:") and is_vit_folder(Path(path.removeprefix("hf:")))):
        strides = model.strides if model.strides != ModelConfig().strides else (DEFAULT_STRIDE,)
        if len(strides) > 1:
            problem = f"a ViT has one level, but teacher.model.strides is {strides}"
            raise UserError(f"{path}: {problem}; give one stride, such as 16")
        features = feature_teacher(path, strides[0])
        return cast(Detector, features), LoadReport(path, len(features.state_dict()), (), (), ())
    if path.startswith("hf:"):
        from detdistill.detectors.transformers.load import load  # transformers takes seconds to import

        loaded, matched = load(path.removeprefix("hf:"), classes, model)
        return loaded, LoadReport(path, matched, (), (), ())
    name, _, file = path.partition("=")
    if name.startswith("torchvision:"):
        return _load_torchvision(name.removeprefix("torchvision:"), file, classes)
    if not file:
        forms = "torchvision:NAME, torchvision:NAME=FILE, hf:NAME, hf:FOLDER, timm:NAME or HEAD:BACKBONE=FILE"
        raise UserError(f"{path}: not a run folder; give a run folder, {forms}")
    if not classes:
        raise UserError(f"{path}: {UNNAMED}")
    detector = build(model.model_copy(update={"name": name, "backbone_weights": "none"}), classes)
    # A state dict of the host library's own model lacks the prefix of our adapter.
    found = read_weights(file, "weights", detector.state_dict(), lambda key: (key, f"model.{key}"))
    return detector, load_strictly(cast(nn.Module, detector), found.state, file, found.note)


def _load_torchvision(name: str, file: str, classes: Sequence[str]) -> tuple[Detector, LoadReport]:
    """A detector of torchvision. file: path of a state dict, or empty for the published weights."""
    if name not in TORCHVISION:
        hint = nearest(name, TORCHVISION)
        raise UserError(f"torchvision:{name}: not supported{hint} (supported: {', '.join(TORCHVISION)})")
    record = TORCHVISION[name]
    weights = get_model_weights(name).DEFAULT
    found = read_weights(file, "weights", _tensors_of(name)) if file else Weights(dict(_published(name, weights)))
    state = found.state
    if record.classifier not in state or len(state[record.classifier]) % record.anchors:
        raise UserError(
            f"{file}: not a state dict of {name}: its tensor {record.classifier!r} is missing or does not fit"
        )
    columns = len(state[record.classifier]) // record.anchors
    names, index = _class_columns(columns, record, weights.meta["categories"], classes, f"{file or name}")
    model = getattr(host, name)(weights=None, weights_backbone=None, num_classes=columns)
    if record.fit is not None:
        record.fit(model, state)
    is_frozen = not any(key.endswith("num_batches_tracked") for key in state)
    if record.zero_eps and is_frozen and found.arguments.get("weights", "COCO"):
        # The weights come from frozen norms, whose eps torchvision sets to 0 if the training started from its COCO
        # weights. A model built without weights has plain norms, for which torchvision does not do it. If the file does
        # not say where its training started, COCO is assumed.
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eps = 0.0
    report = load_strictly(model, state, file or f"torchvision {name}", found.note)
    return record.adapter(model, names, record.strides, index), report


def _tensors_of(name: str) -> Mapping[str, Tensor]:
    """Names and shapes of the state dict of a detector of torchvision with COCO's columns. They take no memory."""
    with torch.device("meta"):
        return getattr(host, name)(weights=None, weights_backbone=None, num_classes=COCO_COLUMNS).state_dict()


def _class_columns(
    columns: int, record: HostModel, categories: Sequence[str], classes: Sequence[str], source: str
) -> tuple[tuple[str, ...], list[int]]:
    """The class names of the weights, and the column of each.

    columns: number of class columns in the weights. categories: COCO's, by column. classes: the classes of the run.
    Raises UserError if the columns are neither COCO's nor as many as the classes.
    """
    num_background = 1 if record.background else 0
    if columns == COCO_COLUMNS and len(classes) + num_background != COCO_COLUMNS:
        index = [column for column, category in enumerate(categories) if category not in ("__background__", "N/A")]
        return tuple(categories[column] for column in index), index
    if columns == len(classes) + 1 or (columns == len(classes) and not record.background):
        first = columns - len(classes)
        return tuple(classes), list(range(first, columns))
    if not classes:
        raise UserError(f"{source}: it has {columns} class columns; {UNNAMED}")
    meaning = f"{columns - 1} classes and {'the background' if record.background else 'an unused column'}"
    meaning += "" if record.background else f", or {columns} classes"
    named = ", ".join(classes[:SHOWN]) + (", ..." if len(classes) > SHOWN else "")
    problem = f"it has {columns} class columns ({meaning}), but the data have {len(classes)} classes ({named})"
    raise UserError(f"{source}: {problem}; give weights that were trained on these classes")


def _published(name: str, weights: object) -> Mapping[str, Tensor]:
    """torchvision's published weights. Raises UserError if they can't be downloaded."""
    url = weights.url  # type: ignore[attr-defined]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    remedy = f"give torchvision:{name}=FILE with the weights of {url}"
    if not cached.exists() and not reachable("download.pytorch.org"):
        problem = "the weights are not on this machine and download.pytorch.org can't be reached"
        raise UserError(f"torchvision:{name}: {problem}; {remedy}")
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)  # type: ignore[attr-defined]
    except Exception as error:  # the socket layer, the hash check and the unpickler raise errors of their own
        reason = str(error).splitlines()[0][:120]
        raise UserError(f"torchvision:{name}: can't download the weights ({reason}); {remedy}") from None
