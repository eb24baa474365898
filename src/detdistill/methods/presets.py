"""Published options per method and detector, as far as they differ from the defaults of the method.

PRESETS has rows of options by detector kind. `preset` picks the row for a pair of detectors; the user's options
override it.

The name of a row is one of:
* `METHOD`: the options of the method;
* `METHOD beside OTHER`: replaces the row `METHOD` if the run also uses the method OTHER;
* `METHOD OPTION=VALUE`: is added to the row of the method if the user sets OPTION to VALUE.

The kind `any` applies to every detector without an entry of its own in the row.

Methods without a row:
* bckd was published for GFL; its defaults are the published weights, and the rows of the released code.
* dist and mimic2017: no weight was published for these detectors.
* pkt and crd: no weight was published for these detectors. The defaults were published for image classifiers, at
  their batch size.
* kd, dkd, proposal_kd, crosskd_roi and chen2017 serve two-stage detectors only. Their module docstrings say which
  defaults were published and which are ours.
* at and gid: no weight for detectors could be verified. The defaults of gid_ld are those of LD's code for GFL.
* defeat: its defaults are the released values, for Faster R-CNN, and the masks of the released code.
* token_alignment, kddetr, go_lsd and clockdistill: the defaults are used for all detectors. Their module docstrings
  give the sources.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from detdistill.types import DetectorInfo

_TWO_STAGE = ("faster_rcnn", "mask_rcnn")

# crosskd and mimicking: the released code of CrossKD. Its box weight of 4.0 for GFL belongs to a KL that is averaged
# over the four sides, as here.
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
    # Published for towers of four convolutions: depth 3, and 2 for FCOS. Counted from the end here, to fit all towers.
    "crosskd": {kind: {**options, "depth": -2 if kind == "fcos" else -1} for kind, options in _DENSE.items()},
    # Exceptions for pairs of different detectors are in `preset`.
    "mimicking": _DENSE,
    # PKD's released code: four levels, weight 10 with a one-stage teacher and 6 with a two-stage teacher.
    "pkd": {kind: {"weight": 10.0, "levels": 4} for kind in _DENSE}
    | {kind: {"weight": 6.0, "levels": 4} for kind in _TWO_STAGE},
    # CrossKD's released code: all levels.
    "pkd beside crosskd": {
        "gfl": {"weight": 6.0},
        "retinanet": {"weight": 2.0},
        "fcos": {"weight": 2.0},
        "atss": {"weight": 1.0},
    },
    # LD's released code. weight_valuable is weight_edges times the code's factor of the ring: 1/4 for GFL and FCOS (the
    # default), 0.15 for ATSS, 0.03 for RetinaNet.
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
    # FGD's released configurations. ATSS has none and gets the row of the other one-stage heads with anchors. With a
    # two-stage teacher only four levels are compared, because its fifth level is only a pooled fourth level.
    "fgd": {kind: {"weight_attention": 5e-4} for kind in _DENSE}
    | dict.fromkeys(_TWO_STAGE, _FGD_TWO_STAGE)
    | {"fcos": _FGD_FCOS},
    # The table of FGD's paper.
    "fgd variant=paper": {kind: {"weight_attention": 1e-3} for kind in _DENSE}
    | {"fcos": {"weight_attention": 8e-3, "temperature": 0.5}},
    # MGD's released code has the same values for all one-stage heads: the defaults. Two-stage heads use four levels, as
    # in FGD.
    "mgd": {kind: {"weight": 5e-7, "drop": 0.45, "levels": 4} for kind in _TWO_STAGE},
    # Each published weight of CWD belongs to one code: 5 to the original code (the default), 10 to the necks of mmrazor
    # 1.x, 5 to GFL's logits in mmrazor 0.3.1.
    "cwd variant=mmrazor": {"any": {"weight": 10.0, "levels": None}},
    "cwd on=logits": {"any": {"weight": 5.0, "levels": None, "variant": "mmrazor"}},
    # The published code has no FGFI loss in the first 400 steps. Here its weight rises from 0 over these steps.
    "fgfi": {"any": {"warmup_steps": 400}},
    # The weight of DeFeat's code for its reduction.
    "fgfi reduction=defeat": {"any": {"weight": 3.0}},
    # mmrazor's weight for its reduction.
    "fitnets reduction=normalized": {"any": {"weight": 10.0}},
    # Published for R101 to R50. Faster R-CNN and RetinaNet have the default of 1.
    "reviewkd": {"mask_rcnn": {"weight": 0.8}},
    # No weight was published per detector. The ultralytics form has its own weight.
    "frs form=ultralytics": {"any": {"weight": 6.0}},
    # DETRDistill's released code. The defaults are the paper's.
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
    """The published options of `method` for this pair of detectors. The caller lets the user's options override them.

    Feature methods and CrossKD compare in the teacher's space, so the teacher's kind selects the entry of a row.
    Mimicking and LD compare in the student's space, so the student's kind selects it.

    beside: names of the other methods of the run.
    given: options of the user, which select among the published variants.
    """
    kind = student.kind if method in ("mimicking", "ld") else teacher.kind
    combined = [name for name in (f"{method} beside {neighbor}" for neighbor in beside) if name in PRESETS]
    options = _entry(combined[0] if combined else method, kind)
    variants = {f"{method} {option}={value}" for option, value in (given or {}).items()}
    for row in PRESETS:
        if row in variants:
            options |= _entry(row, kind)
    if method == "mimicking" and options.get("box") == "auto" and teacher.edges is None:
        # Boxes are compared as for RetinaNet and ATSS, because GFL's weight belongs to the KL of two distributions.
        options = {"box": "giou"}
    if method == "mimicking" and not teacher.has_quality:
        options.pop("weight_quality", None)  # the teacher has no quality to copy
    return options


def _entry(row: str, kind: str) -> dict[str, Any]:
    """A copy of the options of a row for a kind of detector; empty if the row or its entry does not exist."""
    entries = PRESETS.get(row, {})
    return dict(entries.get(kind, entries.get("any", {})))


def published_values(method: str, option: str, default: Any, text: Callable[[Any], str]) -> str:
    """The published values of an option that differ from `default`, such as `retinanet, fcos 10.0; on=logits 5.0`.

    Each value follows the detectors, or the other option or method, that it was published for. text: formats a value.
    """
    places: dict[str, list[str]] = {}
    for row, entries in PRESETS.items():
        if row.split()[0] != method:
            continue
        condition = row.removeprefix(method).strip()
        for kind, options in entries.items():
            if options.get(option, default) != default:
                place = " ".join(part for part in ("" if kind == "any" else kind, condition) if part)
                places.setdefault(text(options[option]), []).append(place)
    return "; ".join(f"{', '.join(names)} {value}".strip() for value, names in places.items())
