"""What a method reads of both outputs, found by running it on a small pair of detectors."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from detdistill.detectors.build import build
from detdistill.methods import METHODS
from detdistill.recipe import ModelConfig
from detdistill.run.pairing import build_methods, resolve, served
from detdistill.testing.scene import scene
from detdistill.types import DetectorOutput, Need, TrainState

CLASSES = ("a", "b")


@dataclass
class Flow:
    """What happened in one call of a method.

    head: of student and teacher. student, teacher: what was read of each output: names of pyramids, `towers`, `stages`,
    `queries`, `proposals`. calls: the functions that continued: `resume`, `redecode`, `classify`, each with the side
    that it belongs to and True if it got features of the other side. labels: True if ground truth or an assignment was
    read. terms: names of the loss terms. learns: True if the method has parameters. need: of the teacher.
    """

    head: str
    student: set[str] = field(default_factory=set)
    teacher: set[str] = field(default_factory=set)
    calls: set[tuple[str, str, bool]] = field(default_factory=set)
    labels: bool = False
    terms: tuple[str, ...] = ()
    learns: bool = False
    need: Need = field(default_factory=Need)


class Pyramids(dict):
    """Pyramids that note which names are read."""

    def __init__(self, pyramids: Mapping[str, Any], noted: set[str]):
        super().__init__(pyramids)
        self.noted = noted

    def __getitem__(self, name: str) -> Any:
        self.noted.add(name)
        return super().__getitem__(name)


class Noting:
    """An output that notes which parts are read."""

    def __init__(self, output: DetectorOutput, noted: set[str]):
        self.__dict__.update(vars(output), noted=noted, pyramids=Pyramids(output.pyramids, noted), parts=output)

    def __getattribute__(self, name: str) -> Any:
        if name in ("stages", "towers", "queries", "proposals"):
            object.__getattribute__(self, "noted").add(name)
        return object.__getattribute__(self, name)


def record(name: str) -> Flow:
    """Run the method with its published options on two detectors of the first head that it serves."""
    head = _served()[name][0]
    student, teacher = _detector(head, "student"), _detector(head, "teacher")
    options = resolve({name: {}}, student.info, teacher.info)
    (method,) = build_methods(options, student.info, teacher.info)
    flow = Flow(head, need=method.need, labels=not METHODS[name].unlabeled)
    batch, targets = scene(len(CLASSES), (128, 128))
    torch.manual_seed(0)
    student_output = student.observe(batch, targets, need=method.student_need)
    with torch.no_grad():
        teacher_output = teacher.observe(batch, need=method.need)
    state = TrainState(step=500, steps=1000, ids=batch.ids)
    watched_student = Noting(_watched(student_output, "student", flow), flow.student)
    watched_teacher = Noting(_watched(teacher_output, "teacher", flow), flow.teacher)
    terms = method(watched_student, watched_teacher, targets, state)
    flow.terms, flow.learns = tuple(terms), any(True for _ in method.parameters())
    crossed = any(with_features for _, _, with_features in flow.calls)
    if not (method.need.pyramids or method.student_need.pyramids or crossed):
        flow.student.discard("neck")  # read for its sizes or anchors alone
    if not method.need.pyramids:
        flow.teacher.discard("neck")
    if method.need.classify and not method.need.proposals:  # of its proposals, only the function is read
        flow.teacher = flow.teacher - {"proposals"} | {"stages"}
    return flow


def _watched(output: DetectorOutput, side: str, flow: Flow) -> DetectorOutput:
    """The output with continuations that note their calls."""

    def noted(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            flow.calls.add((side, name, len(arguments) + len(named) > 1))
            return function(*arguments, **named)

        return call

    changes = {}
    for part, name in (("towers", "resume"), ("queries", "redecode"), ("proposals", "classify")):
        found = getattr(output, part)
        if found is not None:
            changes[part] = dataclasses.replace(found, **{name: noted(getattr(found, name), name)})
    return dataclasses.replace(output, **changes)


@cache
def _served() -> dict[str, list[str]]:
    return served()


@cache
def _detector(head: str, side: str) -> Any:
    torch.manual_seed(0 if side == "student" else 1)
    config = ModelConfig(name=f"{head}:resnet18", channels=32, queries=8, backbone_weights="none")
    detector = build(config, CLASSES)
    return detector.train() if side == "student" else detector.eval().requires_grad_(False)


def heads_served() -> dict[str, list[str]]:
    """For each method, the heads that it serves on both sides."""
    return _served()


def detector_info(head: str) -> Any:
    """The info of a small detector with this head."""
    return _detector(head, "student").info
