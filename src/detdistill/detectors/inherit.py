"""What a fresh student takes over from its teacher before the first step: neck, head. Told by the names of their state dicts.

A layer (the tensors of one module) is taken whole or not at all, and only where names and shapes agree. Never taken:

* the body under the neck, which has weights of its own;
* of the neck, a level that the other side lacks: levels are told apart by stride, not by their number;
* of the head, what belongs to another kind of head, and, where the strides differ, what there is one of for each level;
* class predictors, and a RoI head's box regressors, which are per class, where the class names or their order differ;
* what makes or reads side distributions whose bins mean other distances.
"""

import re
from collections.abc import Collection, Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn

from detdistill.detectors.registry import DETECTORS
from detdistill.errors import UserError
from detdistill.types import Detector, DetectorInfo

Part = Literal["neck", "head"]
State = Mapping[str, Tensor]

BELOW_THE_HEAD = ("neck.", "model.backbone.", "model.model.backbone.", "model.model.input_proj.")
FPN = re.compile(r"(?:neck|model\.backbone)\.fpn\.(inner|layer|extra)_blocks\.(?:convolutions\.|p)?(\d+)\.(.+)")
PROJECTION = re.compile(r"model\.model\.(input_proj)\.(\d+)\.(.+)")
PUBLISHED_EXTRA = re.compile(
    r"extra_blocks\.p\d"
)  # torchvision names its two extra levels p6 and p7, we count ours from 0
PER_CLASS = {
    "cls_logits",
    "classifier",
    "class_embed",
    "class_labels_classifier",
    "enc_score_head",
    "denoising_class_embed",
    "cls_score",
    "bbox_pred",
    "mask_fcn_logits",
}
PER_LEVEL = {"scales", "level_embed", "sampling_offsets", "attention_weights", "decoder_input_proj"}
PER_CODE = {"up", "reg_scale", "bbox_embed", "lqe_layers"}  # of a D-FINE


def inherit(student: Detector, teacher: Detector, parts: Collection[Part]) -> tuple[str, ...]:
    """Copy the teacher's neck and head into the student, in place; one line a part of what was taken. Raises UserError where nothing fits."""
    own, told = student.state_dict(), []
    for part in parts:
        taken = inherited(own, teacher.state_dict(), part, student.info, teacher.info)
        if not taken:
            raise UserError(f"--inherit {part}: {_reason(part, student.info, teacher.info)}")
        with torch.no_grad():
            cast(nn.Module, student).load_state_dict(taken, strict=False)
        other = part == "head" and student.info.classes != teacher.info.classes
        left_out = "; class predictors are its own, as the classes differ" if other else ""
        told.append(
            f"inherited {len(taken)} of {len(_tensors(own, part, student.info))} {part} tensors from the teacher{left_out}"
        )
    return tuple(told)


def inherited(
    student: State, teacher: State, part: Part, mine: DetectorInfo, theirs: DetectorInfo
) -> dict[str, Tensor]:
    """The teacher's tensors that fit, under the student's names. student, teacher: state dicts; mine, theirs: what they are."""
    if part == "head" and mine.kind != theirs.kind and not _share_layers(mine.kind, theirs.kind):
        return {}
    wanted, given = _tensors(student, part, mine), _tensors(teacher, part, theirs)
    if part == "head":
        left = (PER_CLASS if mine.classes != theirs.classes else set()) | (
            PER_LEVEL if mine.strides != theirs.strides else set()
        )
        left |= PER_CODE if mine.edges != theirs.edges else set()
        given = {
            place: name
            for place, name in given.items()
            if place.startswith("model.rpn.") or not left & set(place.split("."))
        }
    layers, offers = (_layers(places, state) for places, state in ((wanted, student), (given, teacher)))
    return {
        wanted[place]: teacher[given[place]]
        for layer in layers
        if layers[layer] == offers.get(layer)
        for place in layers[layer]
    }


def _tensors(state: State, part: Part, info: DetectorInfo) -> dict[str, str]:
    """Place to name of a part's tensors. A neck's places tell the stride in place of the level's number."""
    names = [
        name for name in state if not name.endswith("num_batches_tracked")
    ]  # a counter, which frozen norms haven't got
    whole = DETECTORS[info.kind].neck if info.kind in DETECTORS else ()
    if part == "head":
        return {name: name for name in names if not name.startswith(BELOW_THE_HEAD + whole)}
    if whole:
        return {f"{info.strides}.{name}": name for name in names if name.startswith(whole)}
    found = [(name, match) for name in names if (match := FPN.fullmatch(name) or PROJECTION.fullmatch(name))]
    laterals = {match[2] for _, match in found if match[1] == "inner"}
    places = {}
    for name, match in found:
        level = int(match[2])
        if match[1] == "extra":
            level += len(laterals) - (6 if PUBLISHED_EXTRA.search(name) else 0)
        places[f"{match[1]}.{info.strides[level]}.{match[3]}"] = name
    return places


def _layers(places: Mapping[str, str], state: State) -> dict[str, dict[str, torch.Size]]:
    """Layer to the shapes of its tensors, by place."""
    layers: dict[str, dict[str, torch.Size]] = {}
    for place, name in places.items():
        layers.setdefault(place.rpartition(".")[0], {})[place] = state[name].shape
    return layers


def _reason(part: Part, mine: DetectorInfo, theirs: DetectorInfo) -> str:
    if part == "head" and mine.kind != theirs.kind:
        return f"a {mine.kind} head shares nothing with the teacher's {theirs.kind} head; inherit the neck alone, or take a student of its kind"
    wide = f"the student is {mine.channels['neck']} wide on strides {mine.strides}, the teacher {theirs.channels['neck']} on {theirs.strides}"
    return f"no layer of the teacher's {part} has the names and shapes of the student's ({wide}); give the student its --model.channels"


def _share_layers(student_kind: str, teacher_kind: str) -> bool:
    """True if heads of two different kinds share layers, as their records say."""
    groups = [DETECTORS[kind].head_layers for kind in (student_kind, teacher_kind) if kind in DETECTORS]
    return len(groups) == 2 and groups[0] == groups[1] != ""
