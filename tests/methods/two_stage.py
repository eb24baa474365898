"""Two-stage students and teachers for the tests of methods on RoI heads."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from detdistill.detectors.torchvision.faster_rcnn import FasterRCNN
from detdistill.methods import Method
from detdistill.testing import check_pair, learn
from detdistill.testing import scene as whole_scene
from detdistill.types import Batch, Detector, DetectorOutput, Targets
from tests.detectors.builders import CLASSES
from tests.methods.pairs import built, looks, pair


def wave(shape: tuple[int, ...], step: float, phase: float, scale: float = 1.0) -> torch.Tensor:
    """The inputs of the golden numbers."""
    return (scale * torch.sin(step * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).view(shape)


STUDENT, TEACHER = wave((4, 10), 0.7, 0.1, 3.0), wave((4, 10), 1.3, 0.5, 3.0)


def duo(**options: Any) -> tuple[Detector, Detector]:
    """A student and a frozen teacher, both Faster R-CNN whose RoI heads tell regions apart."""
    student, teacher = pair("faster_rcnn", **options)
    with torch.no_grad():
        for detector, size in ((student, 1.0), (teacher, 0.1)):
            heads = detector.model.roi_heads
            heads.fg_bg_sampler.batch_size_per_image = 128
            heads.box_head.fc6.weight.mul_(2)
            for predictor in (heads.box_predictor.bbox_pred, detector.model.rpn.head.bbox_pred):
                predictor.weight.mul_(size)  # small codes are better ones: a teacher that knows more than the student
    return student, teacher


def seen(
    method: Method, student: Detector, teacher: Detector, scenery: tuple[Batch, Targets] | None = None
) -> tuple[DetectorOutput, DetectorOutput, Targets]:
    """`looks` with one and the same draw of samples."""
    torch.manual_seed(3)
    return looks(method, student, teacher, scenery)


def renamed(detector: Detector, names: dict[str, str]) -> Detector:
    """The same weights under other class names, in the order of `names` (new to old); old names that it lacks join the background."""
    columns = [1 + CLASSES.index(old) for old in names.values()]
    return FasterRCNN(detector.model, tuple(names), detector.info.strides, columns).eval()


def with_boxes(output: DetectorOutput, boxes: torch.Tensor) -> DetectorOutput:
    """The output as if its proposals had been these."""
    return replace(output, proposals=replace(output.proposals, boxes=boxes))


PARTS = {
    "neck": "backbone",
    "rpn": "rpn",
    "box_head": "box_head",
    "classes": "cls_score",
    "codes": "box_predictor.bbox_pred",
}


def touched(detector: Detector) -> set[str]:
    """The parts of a Faster R-CNN that a gradient reached, be it of zeros."""
    return {
        part
        for part, where in PARTS.items()
        for name, own in detector.named_parameters()
        if where in name and own.grad is not None
    }


@cache
def begun() -> Detector:
    """A teacher that has begun to learn the batch of `check_teaching`, so that it and the labels don't pull apart."""
    detector = duo()[0]
    learn(detector, None, [], whole_scene(len(CLASSES), (64, 96)), steps=15, lr=1e-3)
    return detector


def check_teaching(name: str, **student: Any) -> None:
    """Training with the preset lowers the method's sum and the total within three steps, and leaves the teacher alone."""
    learner = duo(**student)[0]
    check_pair(learner, begun(), [built(name, learner, begun())], whole_scene(len(CLASSES), (64, 96)), steps=3)
