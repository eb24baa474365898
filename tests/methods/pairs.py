"""Student and teacher outputs for the tests of methods."""

from typing import Any

import torch

from detdistill.methods import METHODS, Method
from detdistill.methods.presets import preset
from detdistill.run.pairing import configure
from detdistill.types import Batch, Detector, DetectorOutput, Targets
from tests.detectors.builders import scene, shake, tiny


def pair(head: str, teacher: str | None = None, **options: Any) -> tuple[Detector, Detector]:
    """A student and a frozen teacher of other weights, both in eval mode so that two looks agree."""
    student, lecturer = shake(tiny(head, seed=1, **options)), shake(tiny(teacher or head, seed=2))
    return student.eval(), lecturer.eval().requires_grad_(False)


def built(name: str, student: Detector, teacher: Detector, **options: Any) -> Method:
    """The method with the pair's preset under `options`; its own parts from a fixed seed."""
    torch.manual_seed(0)
    config, _ = configure(name, {**preset(name, student.info, teacher.info, given=options), **options})
    return METHODS[name].build(config, student.info, teacher.info)


def looks(
    method: Method, student: Detector, teacher: Detector, scenery: tuple[Batch, Targets] | None = None
) -> tuple[DetectorOutput, DetectorOutput, Targets]:
    """What the method is called with."""
    batch, targets = scenery or scene()
    with torch.no_grad():
        lesson = teacher.observe(batch, need=method.need)
    return student.observe(batch, targets, need=method.student_need), lesson, targets
