"""Options as published, per detector: what differs from the method's own defaults. User options go on top.

crosskd and mimicking: the released CrossKD code (its regression weight of GFL is written 4.0 with an inner mean over four sides, as here).
Positions are published for towers of four convolutions (3, and 2 for FCOS) and given from the end here, so that they fit other depths.
pkd: with a teacher alone 6 (two-stage) or 10 (one-stage), as in its published code.
"""

from collections.abc import Mapping
from typing import Any

from detdistill.types import DetectorInfo

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
    "pkd": {kind: {"weight": 10.0} for kind in _DENSE} | {"faster_rcnn": {"weight": 6.0}},
}


def preset(method: str, student: DetectorInfo, teacher: DetectorInfo) -> Mapping[str, Any]:
    """The published options of `method` for this pair. CrossKD and PKD compare in the teacher's space, mimicking in the student's."""
    kind = student.kind if method == "mimicking" else teacher.kind
    options = dict(PRESETS.get(method, {}).get(kind, {}))
    if method == "mimicking" and not teacher.quality:
        options.pop("weight_quality", None)  # nothing to copy
    return options
