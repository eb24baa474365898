"""Pairs of student and teacher, and their outputs, for the tests of methods."""

from typing import Any

import torch

from detdistill.methods import METHODS, Method
from detdistill.methods.presets import preset
from detdistill.run.pairing import configure
from detdistill.types import Batch, Detector, DetectorOutput, Targets
from tests.detectors.builders import scene, shake, tiny


def pair(head: str, teacher: str | None = None, **options: Any) -> tuple[Detector, Detector]:
    """Returns a student and a frozen teacher with different weights.

    Both are in eval mode, so that two calls give the same output. teacher: kind of the teacher, by default `head`.
    options: of the student.
    """
    student_detector = shake(tiny(head, seed=1, **options))
    teacher_detector = shake(tiny(teacher or head, seed=2))
    return student_detector.eval(), teacher_detector.eval().requires_grad_(False)


def built(name: str, student: Detector, teacher: Detector, **options: Any) -> Method:
    """Returns the method with these options over the preset of the pair. Its learned parts have a fixed seed."""
    torch.manual_seed(0)
    config, _ = configure(name, {**preset(name, student.info, teacher.info, given=options), **options})
    return METHODS[name].build(config, student.info, teacher.info)


def method_inputs(
    method: Method, student: Detector, teacher: Detector, scenery: tuple[Batch, Targets] | None = None
) -> tuple[DetectorOutput, DetectorOutput, Targets]:
    """Returns the arguments of the method: student_output, teacher_output, targets. scenery: batch and targets."""
    batch, targets = scenery or scene()
    with torch.no_grad():
        teacher_output = teacher.observe(batch, need=method.need)
    return student.observe(batch, targets, need=method.student_need), teacher_output, targets
