"""Copies neck and head of the teacher into a fresh student (--inherit), by the names in their state dicts.

A layer is the set of tensors of one module. It is copied whole, and only if all names and shapes agree. Not copied are:

* the backbone, which has weights of its own;
* neck levels that only one of the two detectors has. Levels are matched by stride, not by their number;
* separable convolutions from plain ones, or plain ones from separable ones;
* the layers of another kind of head, and, if the strides differ, the layers that exist once per level;
* class predictors if the class names or their order differ, and with them the box regressors of RoI heads, which are
  per class;
* layers that predict or read side-distance distributions whose bins stand for other distances.
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
FPN = re.compile(
    r"(?:neck|model\.backbone)\.fpn\.(?:extra_blocks\.(?=down|out))?(inner|layer|down|out|extra)_blocks\."
    r"(?:coarser\.)?(?:convolutions\.|p)?(\d+)\.(.+)"
)
PROJECTION = re.compile(r"model\.model\.(input_proj)\.(\d+)\.(.+)")
# torchvision names its two extra levels p6 and p7. Ours are counted from 0.
HOST_EXTRA_LEVEL = re.compile(r"extra_blocks\.p\d")
FIRST_HOST_EXTRA_LEVEL = 6

# Modules of a head that depend on the classes, on the levels, or on the distances of edge bins.
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
PER_EDGE_BIN = {"up", "reg_scale", "bbox_embed", "lqe_layers"}  # D-FINE


def inherit(student: Detector, teacher: Detector, parts: Collection[Part]) -> tuple[str, ...]:
    """Copy the teacher's neck and head into the student, in place. Returns one line per part for the log.

    Raises UserError if no layer of a part fits.
    """
    student_state = student.state_dict()
    messages = []
    for part in parts:
        tensors = inherited_tensors(student_state, teacher.state_dict(), part, student.info, teacher.info)
        if not tensors:
            mixed = _differ_in_depthwise(student_state, teacher.state_dict())
            raise UserError(f"--inherit {part}: {_why_nothing_fits(part, student.info, teacher.info, mixed)}")
        with torch.no_grad():
            cast(nn.Module, student).load_state_dict(tensors, strict=False)
        count = len(_part_tensors(student_state, part, student.info))
        message = f"inherited {len(tensors)} of {count} {part} tensors from the teacher"
        if _differ_in_depthwise(student_state, teacher.state_dict()):
            message += "; 3x3 convolutions start fresh, because only one of the two detectors has --model.depthwise"
        if part == "head" and student.info.classes != teacher.info.classes:
            message += "; class predictors start fresh, because the classes differ"
        messages.append(message)
    return tuple(messages)


def inherited_tensors(
    student_state: State, teacher_state: State, part: Part, student_info: DetectorInfo, teacher_info: DetectorInfo
) -> dict[str, Tensor]:
    """The teacher's tensors that fit the student, under the student's names. Empty if none fits."""
    kinds = (student_info.kind, teacher_info.kind)
    if part == "head" and kinds[0] != kinds[1] and not _share_layers(*kinds):
        return {}
    student_names = _part_tensors(student_state, part, student_info)
    teacher_names = _part_tensors(teacher_state, part, teacher_info)
    if part == "head":
        skipped = _skipped_modules(student_info, teacher_info)
        teacher_names = {
            key: name
            for key, name in teacher_names.items()
            # The predictors of an RPN have names of class predictors, but do not depend on the classes.
            if key.startswith("model.rpn.") or not skipped & set(key.split("."))
        }
        if _differ_in_depthwise(student_state, teacher_state):
            return {}  # towers and predictors differ; without them, the few other tensors have no use
    student_layers = _layer_shapes(student_names, student_state)
    teacher_layers = _layer_shapes(teacher_names, teacher_state)
    tensors: dict[str, Tensor] = {}
    for layer, shapes in student_layers.items():
        if shapes == teacher_layers.get(layer):
            tensors |= {student_names[key]: teacher_state[teacher_names[key]] for key in shapes}
    return tensors


def _skipped_modules(student_info: DetectorInfo, teacher_info: DetectorInfo) -> set[str]:
    """Names of the modules of a head that can't be copied, because the two detectors differ in what they depend on."""
    skipped: set[str] = set()
    if student_info.classes != teacher_info.classes:
        skipped |= PER_CLASS
    if student_info.strides != teacher_info.strides:
        skipped |= PER_LEVEL
    if student_info.edges != teacher_info.edges:
        skipped |= PER_EDGE_BIN
    return skipped


def _part_tensors(state: State, part: Part, info: DetectorInfo) -> dict[str, str]:
    """The tensors of a part: key to name in the state dict. Tensors of two detectors that correspond have equal keys.

    The key of a neck tensor contains the stride of its level instead of the level's number.
    """
    names = [name for name in state if not name.endswith("num_batches_tracked")]  # frozen norms have no such counter
    whole_neck = DETECTORS[info.kind].neck if info.kind in DETECTORS else ()
    if part == "head":
        return {name: name for name in names if not name.startswith(BELOW_THE_HEAD + whole_neck)}
    if whole_neck:
        return {f"{info.strides}.{name}": name for name in names if name.startswith(whole_neck)}
    matches = [(name, match) for name in names if (match := FPN.fullmatch(name) or PROJECTION.fullmatch(name))]
    num_laterals = len({match[2] for _, match in matches if match[1] == "inner"})
    keys = {}
    for name, match in matches:
        level = int(match[2])
        if match[1] in ("down", "out"):  # the second path begins at the second level
            level += 1
        if match[1] == "extra":  # the extra levels come after those with a lateral convolution
            level += num_laterals - (FIRST_HOST_EXTRA_LEVEL if HOST_EXTRA_LEVEL.search(name) else 0)
        keys[f"{match[1]}.{info.strides[level]}.{match[3]}"] = name
    return keys


def _layer_shapes(names: Mapping[str, str], state: State) -> dict[str, dict[str, torch.Size]]:
    """For each layer, the shapes of its tensors by key. names: key to name in the state dict."""
    layers: dict[str, dict[str, torch.Size]] = {}
    for key, name in names.items():
        layers.setdefault(key.rpartition(".")[0], {})[key] = state[name].shape
    return layers


def _differ_in_depthwise(student_state: State, teacher_state: State) -> bool:
    """True if the neck or the head of only one of the two detectors has separable convolutions."""
    student_separable, teacher_separable = (
        any(".pointwise." in name and ".body." not in name for name in state)
        for state in (student_state, teacher_state)
    )
    return student_separable != teacher_separable


def _why_nothing_fits(part: Part, student_info: DetectorInfo, teacher_info: DetectorInfo, mixed: bool) -> str:
    """The reason for an error message, with the remedy. mixed: only one of the two has separable convolutions."""
    if part == "head" and student_info.kind != teacher_info.kind:
        heads = f"a {student_info.kind} head shares no layers with the teacher's {teacher_info.kind} head"
        other = f", or a {teacher_info.kind} student" if teacher_info.kind in DETECTORS else ""
        return f"{heads}; use --inherit neck{other}"
    if mixed:
        problem = "separable and plain convolutions have no common layers, and only one of the two has them separable"
        return f"{problem}; give student and teacher the same --model.depthwise, or leave --inherit out"
    student_size = f"{student_info.width()} channels on strides {student_info.strides}"
    teacher_size = f"{teacher_info.width()} channels on strides {teacher_info.strides}"
    sizes = f"the student has {student_size}, the teacher {teacher_size}"
    problem = f"no layer of the teacher's {part} has the names and shapes of the student's"
    return f"{problem} ({sizes}); set the student's --model.channels and --model.strides to the teacher's"


def _share_layers(student_kind: str, teacher_kind: str) -> bool:
    """True if the heads of two different kinds have common layers, according to their records."""
    groups = [DETECTORS[kind].head_layers for kind in (student_kind, teacher_kind) if kind in DETECTORS]
    return len(groups) == 2 and groups[0] == groups[1] != ""
