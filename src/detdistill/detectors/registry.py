"""The detectors by name, one record per family.

To add a detector, write a module with its adapter, a record in DETECTORS, and a test file.
This module imports neither torch nor a host library, because the command line reads the records for lists and flags.
The module of a family is imported when one of its detectors is built.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from detdistill.types import Detector

Group = Literal["dense", "two-stage", "queries"]
Builder = Callable[..., "Detector"]

NATIVE = "native"  # as the name of a backbone: the backbone of the family's own config, instead of a timm backbone

DENSE_OPTIONS = frozenset({"neck", "depthwise", "tower_depth", "norm", "edges", "edge_bins", "nms_threshold"})
TWO_STAGE_OPTIONS = frozenset({"neck", "rois", "nms_threshold"})
QUERY_OPTIONS = frozenset({"queries", "encoder_layers", "decoder_layers"})


@dataclass(frozen=True)
class HostRecord:
    """How transformers names a family of its detectors, and how it prepares their images.

    model_type: the value of `model_type` in a config.json.
    model: name of the class in transformers.
    adapter: "module:class" of our adapter.
    levels: the config field that holds the number of neck levels. Empty if the model has one level.
    class_head: attribute that holds the class heads. Empty if a subset of their columns can't be selected.
    background: True if the class heads end with a `no object` column.
    processor: the image processor of the published weights.
    normalized: True if that processor subtracts ImageNet's mean and divides by its standard deviation.
    masks_padding: True if the model gets a mask of the padding. Others get images stretched to the padded size.
    """

    model_type: str
    model: str
    adapter: str
    levels: str = ""
    class_head: str = ""
    background: bool = False
    processor: str = "RTDetrImageProcessor"
    normalized: bool = False
    masks_padding: bool = False


@dataclass(frozen=True)
class DetectorRecord:
    """One family of detectors.

    builder: "module:function" of `function(config, backbone, classes, **options) -> Detector`, or the function itself.
    summary: one line for lists.
    group: the kind of head.
    strides: strides of the published pyramid. None stands for the default of the recipe.
    options: fields of `ModelConfig` that the family reads, besides those that every family reads.
    family_options: a dataclass of the options that only this family has (--model.options.NAME), or its "module:name".
    neck: for --inherit, state-dict prefixes of a neck that is copied whole, if the strides are equal. Empty for an FPN
        and for input projections: they are copied per stride.
    head_layers: for --inherit, a word shared by the families whose heads have common layers. Empty if there are none.
    learned_queries: True if the queries are parameters.
    learning_rate: of AdamW, as published. None if larger rates do no harm.
    host: how transformers names the family, or None if it is not a family of transformers.
    """

    builder: str | Builder
    summary: str
    group: Group = "dense"
    strides: tuple[int, ...] | None = None
    options: frozenset[str] = frozenset()
    family_options: str | type[Any] | None = None
    neck: tuple[str, ...] = ()
    head_layers: str = ""
    learned_queries: bool = False
    learning_rate: float | None = None
    host: HostRecord | None = None

    def build(self, config: Any, backbone: str, classes: Sequence[str], **options: Any) -> "Detector":
        """Build the detector with a fresh head. Raises UserError if backbone and options do not fit this family."""
        builder = resolve(self.builder) if isinstance(self.builder, str) else self.builder
        return builder(config, backbone, classes, **options)

    def options_class(self) -> type[Any] | None:
        """The dataclass of the options that only this family has, or None if it has none."""
        return resolve(self.family_options) if isinstance(self.family_options, str) else self.family_options


def resolve(path: str) -> Any:
    """Import the object that "module:name" names. The module is relative to `detdistill.detectors`."""
    module, _, name = path.partition(":")
    return getattr(import_module(f"detdistill.detectors.{module}"), name)


_SINGLE_LEVEL_NECK = ("model.model.input_projection.",)
_HYBRID_NECK = ("model.model.encoder_input_proj.", "model.model.encoder.")

DETECTORS: dict[str, DetectorRecord] = {
    "retinanet": DetectorRecord(
        builder="torchvision.retinanet:retinanet",
        summary="RetinaNet of torchvision. Nine anchors per cell.",
        options=DENSE_OPTIONS,
    ),
    "fcos": DetectorRecord(
        builder="torchvision.fcos:fcos",
        summary="FCOS of torchvision. One point per cell, centerness.",
        options=DENSE_OPTIONS,
    ),
    "atss": DetectorRecord(
        builder="dense.atss:ATSS",
        summary="ATSS, our implementation. One anchor per cell, centerness.",
        options=DENSE_OPTIONS,
        head_layers="atss",
    ),
    "gfl": DetectorRecord(
        builder="dense.gfl:GFL",
        summary="GFL, our implementation. One anchor per cell, side distances as distributions.",
        options=DENSE_OPTIONS,
        head_layers="atss",
    ),
    "faster_rcnn": DetectorRecord(
        builder="torchvision.faster_rcnn:faster_rcnn",
        summary="Faster R-CNN of torchvision with an FPN or PAFPN.",
        group="two-stage",
        options=TWO_STAGE_OPTIONS,
        head_layers="faster_rcnn",
    ),
    "mask_rcnn": DetectorRecord(
        builder="torchvision.mask_rcnn:mask_rcnn",
        summary="Mask R-CNN of torchvision with an FPN or PAFPN. Boxes only: its mask branch is not run.",
        group="two-stage",
        options=TWO_STAGE_OPTIONS,
        head_layers="faster_rcnn",
    ),
    "detr": DetectorRecord(
        builder="transformers.detr:detr",
        summary="DETR of transformers, one level.",
        group="queries",
        strides=(32,),
        options=QUERY_OPTIONS,
        neck=_SINGLE_LEVEL_NECK,
        learned_queries=True,
        learning_rate=1e-4,
        host=HostRecord(
            model_type="detr",
            model="DetrForObjectDetection",
            adapter="transformers.detr:adapt",
            class_head="class_labels_classifier",
            background=True,
            processor="DetrImageProcessor",
            normalized=True,
            masks_padding=True,
        ),
    ),
    "conditional_detr": DetectorRecord(
        builder="transformers.conditional_detr:conditional_detr",
        summary="Conditional DETR of transformers, one level.",
        group="queries",
        strides=(32,),
        options=QUERY_OPTIONS,
        neck=_SINGLE_LEVEL_NECK,
        learned_queries=True,
        learning_rate=1e-4,
        host=HostRecord(
            model_type="conditional_detr",
            model="ConditionalDetrForObjectDetection",
            adapter="transformers.conditional_detr:adapt",
            class_head="class_labels_classifier",
            processor="ConditionalDetrImageProcessor",
            normalized=True,
            masks_padding=True,
        ),
    ),
    "deformable_detr": DetectorRecord(
        builder="transformers.deformable_detr:deformable_detr",
        summary="Deformable DETR of transformers: plain, with box refinement, or two-stage.",
        group="queries",
        strides=(8, 16, 32, 64),
        options=QUERY_OPTIONS | {"box_refine", "two_stage"},
        learned_queries=True,
        learning_rate=2e-4,
        host=HostRecord(
            model_type="deformable_detr",
            model="DeformableDetrForObjectDetection",
            adapter="transformers.deformable_detr:DeformableDETR",
            levels="num_feature_levels",
            class_head="class_embed",
            processor="DeformableDetrImageProcessor",
            normalized=True,
            masks_padding=True,
        ),
    ),
    "dab_detr": DetectorRecord(
        builder="transformers.dab_detr:dab_detr",
        summary="DAB-DETR of transformers, one level.",
        group="queries",
        strides=(32,),
        options=QUERY_OPTIONS,
        neck=_SINGLE_LEVEL_NECK,
        learned_queries=True,
        learning_rate=1e-4,
        host=HostRecord(
            model_type="dab-detr",
            model="DabDetrForObjectDetection",
            adapter="transformers.dab_detr:adapt",
            class_head="class_embed",
            processor="ConditionalDetrImageProcessor",
            normalized=True,
            masks_padding=True,
        ),
    ),
    "rt_detr": DetectorRecord(
        builder="transformers.rt_detr:rt_detr",
        summary="RT-DETR of transformers.",
        group="queries",
        strides=(8, 16, 32),
        options=QUERY_OPTIONS,
        neck=_HYBRID_NECK,
        learning_rate=1e-4,
        host=HostRecord(
            model_type="rt_detr",
            model="RTDetrForObjectDetection",
            adapter="transformers.rt_detr:RTDETR",
            levels="num_feature_levels",
        ),
    ),
    "rt_detr_v2": DetectorRecord(
        builder="transformers.rt_detr:rt_detr_v2",
        summary="RT-DETRv2 of transformers.",
        group="queries",
        strides=(8, 16, 32),
        options=QUERY_OPTIONS,
        neck=_HYBRID_NECK,
        learning_rate=1e-4,
        host=HostRecord(
            model_type="rt_detr_v2",
            model="RTDetrV2ForObjectDetection",
            adapter="transformers.rt_detr:RTDETR",
            levels="num_feature_levels",
        ),
    ),
    "d_fine": DetectorRecord(
        builder="transformers.d_fine:d_fine",
        summary="D-FINE of transformers.",
        group="queries",
        strides=(8, 16, 32),
        options=QUERY_OPTIONS,
        neck=_HYBRID_NECK,
        learning_rate=2.5e-4,
        host=HostRecord(
            model_type="d_fine",
            model="DFineForObjectDetection",
            adapter="transformers.d_fine:DFINE",
            levels="num_feature_levels",
        ),
    ),
    "adamixer": DetectorRecord(
        builder="adamixer.adamixer:adamixer",
        summary="AdaMixer, our implementation. A query decoder without an encoder.",
        group="queries",
        strides=(4, 8, 16, 32),
        options=QUERY_OPTIONS - {"encoder_layers"},
        family_options="adamixer.decoder:Sizes",
        neck=("model.neck.",),
        learned_queries=True,
        learning_rate=2.5e-5,
    ),
}
"""Every detector by name, in the order of lists and tables. A file given by --import can add detectors."""


def names(*groups: Group) -> tuple[str, ...]:
    """Names of the detectors in these groups, in the order of DETECTORS."""
    return tuple(name for name, record in DETECTORS.items() if record.group in groups)


def host_records() -> dict[str, DetectorRecord]:
    """The records of the detectors of transformers, by `model_type`."""
    return {record.host.model_type: record for record in DETECTORS.values() if record.host is not None}
