"""Options as published, per detector: what differs from the method's own defaults. User options go on top.

crosskd and mimicking: the released CrossKD code (its regression weight of GFL is written 4.0 with an inner mean over four sides, as here).
Positions are published for towers of four convolutions (3, and 2 for FCOS) and given from the end here, so that they fit other depths.
pkd: alone 6 with a two-stage teacher and 10 with a one-stage one, on four levels, as in its published code; beside CrossKD as in CrossKD's.
ld: its released code per head, in which the ring's factors (1/4 of the main weight for GFL and FCOS, 0.15 for ATSS, 0.03 for RetinaNet) are multiplied in here.
bckd: published for GFL, which is the default. dist: no weight was published for detectors.
mimicking of a GFL student by a teacher without side distributions compares boxes, as for RetinaNet and ATSS: GFL's weight belongs to the KL.
kd, dkd, proposal_kd, crosskd_roi and chen2017 serve two-stage heads alone and have no rows; what of their defaults is published, and what
ours, their own heads say.
fgd: the released configurations (ATSS, which has none, as the other one-stage heads with anchors); `variant: paper` as the paper's table. On
four levels with a two-stage teacher, where the last is but a pooled one; the same holds for mgd.
mgd: one row for all one-stage heads, which is the default, and one for two-stage heads.
cwd: the weight belongs to what it was published with: 5 for the original code, 10 for mmrazor 1.x's necks, 5 for GFL's logits in mmrazor 0.3.1.
frs: nothing was published per detector; `form: ultralytics` has its own weight. detrdistill: `variant: released` as its code; the paper's is the default.
mimic2017, pkt and crd: nothing was published for these heads; the weights of pkt and crd are those for classifiers, at their batch.
at and gid have no published weights for detectors, but gid's of LD's code for GFL. defeat: its defaults are the released ones, of Faster R-CNN.
fgfi: silent for its first 400 steps as published, here rising over them; 3 is the weight of DeFeat's code with its own reduction.
fitnets: mmrazor's weight with its own reduction. reviewkd: R101 to R50; Faster R-CNN and RetinaNet have the default of 1.
A row named "method option=value" goes on top of the method's where that option is given; "any" stands for every detector not named.
"""

from collections.abc import Callable, Collection, Mapping
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

_FGD_TWO_STAGE = {
    "weight_foreground": 5e-5,
    "weight_background": 2.5e-5,
    "weight_attention": 5e-5,
    "weight_relation": 5e-7,
    "levels": 4,
}
_FGD_FCOS = {
    "weight_foreground": 1.6e-3,
    "weight_background": 8e-4,
    "weight_attention": 8e-4,
    "weight_relation": 8e-6,
    "temperature": 0.8,
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "crosskd": {kind: {**options, "depth": -2 if kind == "fcos" else -1} for kind, options in _DENSE.items()},
    "mimicking": _DENSE,
    "pkd": {kind: {"weight": 10.0, "levels": 4} for kind in _DENSE}
    | {kind: {"weight": 6.0, "levels": 4} for kind in _TWO_STAGE},
    "pkd beside crosskd": {
        "gfl": {"weight": 6.0},
        "retinanet": {"weight": 2.0},
        "fcos": {"weight": 2.0},
        "atss": {"weight": 1.0},
    },
    "ld": {
        "atss": {"weight_valuable": 0.0375},
        "fcos": {"region": "inside", "valuable": "score"},
        "retinanet": {
            "weight_edges": 5.0,
            "weight_valuable": 0.15,
            "softmax": "joint",
            "exclude_positives": True,
            "class_temperature": 8.0,
        },
    },
    "fgd": {kind: {"weight_attention": 5e-4} for kind in _DENSE}
    | dict.fromkeys(_TWO_STAGE, _FGD_TWO_STAGE)
    | {"fcos": _FGD_FCOS},
    "fgd variant=paper": {kind: {"weight_attention": 1e-3} for kind in _DENSE}
    | {"fcos": {"weight_attention": 8e-3, "temperature": 0.5}},
    "mgd": {kind: {"weight": 5e-7, "drop": 0.45, "levels": 4} for kind in _TWO_STAGE},
    "cwd variant=mmrazor": {"any": {"weight": 10.0, "levels": None}},
    "cwd on=logits": {"any": {"weight": 5.0, "levels": None, "variant": "mmrazor"}},
    "gid": {"gfl": {"variant": "ld"}},
    "fgfi": {"any": {"warmup_steps": 400}},
    "fgfi reduction=defeat": {"any": {"weight": 3.0}},
    "fitnets reduction=normalized": {"any": {"weight": 10.0}},
    "reviewkd": {"mask_rcnn": {"weight": 0.8}},
    "frs form=ultralytics": {"any": {"weight": 6.0}},
    "detrdistill variant=released": {
        "any": {
            "weight_relation": 0.2,
            "pairs": "joint",
            "clip": True,
            "mask": "aggregated",
            "gamma": None,
            "adapter": "when_needed",
            "assignment": "student",
        }
    },
}


def preset(
    method: str,
    student: DetectorInfo,
    teacher: DetectorInfo,
    beside: Collection[str] = (),
    given: Mapping[str, Any] | None = None,
) -> Mapping[str, Any]:
    """The published options of `method` for this pair. Features and CrossKD are compared in the teacher's space, mimicking and LD in the
    student's.

    beside: the other methods of the run. given: the user's options, which choose among the published variants and go on top.
    """
    kind = student.kind if method in ("mimicking", "ld") else teacher.kind
    together = next((name for name in (f"{method} beside {other}" for other in beside) if name in PRESETS), method)
    base = PRESETS.get(together, {})
    options = dict(base.get(kind, base.get("any", {})))
    chosen = {f"{method} {option}={value}" for option, value in (given or {}).items()}
    for row in (PRESETS[name] for name in PRESETS if name in chosen):
        options |= row.get(kind, row.get("any", {}))
    if method == "mimicking" and options.get("box") == "auto" and teacher.edges is None:
        options = {"box": "giou"}
    if method == "mimicking" and not teacher.has_quality:
        options.pop("weight_quality", None)  # nothing to copy
    return options


def told(method: str, option: str, default: Any, text: Callable[[Any], str]) -> str:
    """`retinanet, fcos 10.0; on=logits 5.0`: published values that aren't the default, in `text`, and for which detectors or beside which option."""
    places: dict[str, list[str]] = {}
    for row, kinds in PRESETS.items():
        if row.split()[0] == method:
            beside = row.removeprefix(method).strip()
            for kind, options in kinds.items():
                if options.get(option, default) != default:
                    place = " ".join(part for part in ("" if kind == "any" else kind, beside) if part)
                    places.setdefault(text(options[option]), []).append(place)
    return "; ".join(f"{', '.join(where)} {value}".strip() for value, where in places.items())
