"""Options as published, per detector: what differs from the method's own defaults. User options go on top.

crosskd and mimicking: the released CrossKD code (its regression weight of GFL is written 4.0 with an inner mean over four sides, as here).
Positions are published for towers of four convolutions (3, and 2 for FCOS) and given from the end here, so that they fit other depths.
pkd: alone 6 with a two-stage teacher and 10 with a one-stage one, on four levels, as in its published code; beside CrossKD as in CrossKD's.
kd, dkd, proposal_kd, crosskd_roi and chen2017 serve two-stage heads alone: their own defaults are what is published for these.
"""

from collections.abc import Collection, Mapping
from typing import Any

from detdistill.types import DetectorInfo

_TWO_STAGE = ("faster_rcnn", "mask_rcnn")
_DENSE: dict[str, dict[str, Any]] = {
    "gfl": {"weight_box": 4.0, "box": "auto", "box_normalizer": "trust"},
    "retinanet": {"box": "giou"},
    "atss": {"box": "giou", "weight_quality": 1.0},
    "fcos": {
        "weight_class": 0.4,
        "weight_box": 0.75,
        "box": "log_iou",
        "class_region": "all",
        "box_region": "all",
        "class_normalizer": "quality",
        "box_normalizer": "quality",
    },
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "crosskd": {kind: {**options, "depth": -2 if kind == "fcos" else -1} for kind, options in _DENSE.items()},
    "mimicking": _DENSE,
    "pkd": {kind: {"weight": 10.0, "levels": 4} for kind in _DENSE} | {kind: {"weight": 6.0, "levels": 4} for kind in _TWO_STAGE},
    "pkd beside crosskd": {"gfl": {"weight": 6.0}, "retinanet": {"weight": 2.0}, "fcos": {"weight": 2.0}, "atss": {"weight": 1.0}},
}


def preset(method: str, student: DetectorInfo, teacher: DetectorInfo, beside: Collection[str] = ()) -> Mapping[str, Any]:
    """The published options of `method` for this pair. CrossKD and PKD compare in the teacher's space, mimicking in the student's.

    beside: the other methods of the run.
    """
    kind = student.kind if method == "mimicking" else teacher.kind
    together = next((name for name in (f"{method} beside {other}" for other in beside) if name in PRESETS), method)
    options = dict(PRESETS.get(together, {}).get(kind, {}))
    if method == "mimicking" and not teacher.quality:
        options.pop("weight_quality", None)  # nothing to copy
    return options
