"""Two-stage students and teachers for the tests of methods on RoI heads."""

from dataclasses import replace
from functools import cache
from typing import Any

import torch

from detdistill.detectors.torchvision.faster_rcnn import FasterRCNN
from detdistill.methods import Method
from detdistill.testing import check_pair, learn
from detdistill.testing import scene as example_scene
from detdistill.types import Batch, Detector, DetectorOutput, Targets
from tests.detectors.builders import CLASSES
from tests.losses.inputs import wave
from tests.methods.pairs import built, method_inputs, pair

# Logits of the golden numbers.
STUDENT, TEACHER = wave((4, 10), 0.7, 0.1, 3.0), wave((4, 10), 1.3, 0.5, 3.0)


def two_stage_pair(**options: Any) -> tuple[Detector, Detector]:
    """Returns a student and a frozen teacher, both a Faster R-CNN whose predictions differ between regions."""
    student, teacher = pair("faster_rcnn", **options)
    with torch.no_grad():
        for detector, size in ((student, 1.0), (teacher, 0.1)):
            heads = detector.model.roi_heads
            heads.fg_bg_sampler.batch_size_per_image = 128
            heads.box_head.fc6.weight.mul_(2)
            for predictor in (heads.box_predictor.bbox_pred, detector.model.rpn.head.bbox_pred):
                predictor.weight.mul_(size)  # small codes are more accurate: the teacher is better than the student
    return student, teacher


def sampled_outputs(
    method: Method, student: Detector, teacher: Detector, scenery: tuple[Batch, Targets] | None = None
) -> tuple[DetectorOutput, DetectorOutput, Targets]:
    """Returns the same as `method_inputs`, with a fixed seed for the samples of the student's losses."""
    torch.manual_seed(3)
    return method_inputs(method, student, teacher, scenery)


def with_classes(detector: Detector, names: dict[str, str]) -> Detector:
    """Returns the same weights under other class names, in the order of `names` (new to old).

    Old names that are not in `names` join the background.
    """
    columns = [1 + CLASSES.index(old) for old in names.values()]
    return FasterRCNN(detector.model, tuple(names), detector.info.strides, columns).eval()


def with_boxes(output: DetectorOutput, boxes: torch.Tensor) -> DetectorOutput:
    """Returns the output with these boxes as its proposals."""
    return replace(output, proposals=replace(output.proposals, boxes=boxes))


PARTS = {
    "neck": "backbone",
    "rpn": "rpn",
    "box_head": "box_head",
    "classes": "cls_score",
    "codes": "box_predictor.bbox_pred",
}


def parts_with_gradient(detector: Detector) -> set[str]:
    """Returns the parts of a Faster R-CNN that have a gradient, even a gradient of zeros."""
    return {
        part
        for part, pattern in PARTS.items()
        for name, parameter in detector.named_parameters()
        if pattern in name and parameter.grad is not None
    }


@cache
def trained_teacher() -> Detector:
    """Returns a teacher after a few steps on the batch of `check_training`, so that its predictions agree with the
    labels."""
    detector = two_stage_pair()[0]
    learn(detector, None, [], example_scene(len(CLASSES), (64, 96)), steps=15, lr=1e-3)
    return detector


def check_training(name: str, **student_options: Any) -> None:
    """Checks that training with the preset lowers the method's terms and the total within three steps, and leaves the
    teacher unchanged."""
    student = two_stage_pair(**student_options)[0]
    methods = [built(name, student, trained_teacher())]
    check_pair(student, trained_teacher(), methods, example_scene(len(CLASSES), (64, 96)), steps=3)
