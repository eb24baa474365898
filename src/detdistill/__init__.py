"""Knowledge distillation for object detectors.

    teacher = dd.load("runs/teacher")
    student = dd.build("gfl:resnet18", classes=teacher.info.classes)
    distillation = dd.pair(student, teacher, "pkd,crosskd")
    teacher_output = teacher.observe(batch, need=distillation.need)
    terms = distillation(batch, targets, teacher_output=teacher_output)

The names are imported on first use, so that `import detdistill` and `detdistill --help` do not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from detdistill.errors import UserError

if TYPE_CHECKING:
    from detdistill import geometry, losses, methods, testing, types
    from detdistill.data import collate_samples
    from detdistill.detectors.features import FeatureModel
    from detdistill.engine.distillation import Distillation
    from detdistill.engine.fit import fit
    from detdistill.engine.schedule import Schedule
    from detdistill.run import (
        build,
        compare,
        demo,
        distill,
        evaluate,
        export,
        inspect_data,
        inspect_pair,
        load,
        pair,
        predict,
        report,
        save,
        train,
    )

MODULES = ("geometry", "losses", "methods", "testing", "types")
HOMES = {
    "Distillation": "detdistill.engine.distillation",
    "FeatureModel": "detdistill.detectors.features",
    "Schedule": "detdistill.engine.schedule",
    "collate_samples": "detdistill.data",
    "fit": "detdistill.engine.fit",
    **dict.fromkeys(
        (
            "build",
            "compare",
            "demo",
            "distill",
            "evaluate",
            "export",
            "inspect_data",
            "inspect_pair",
            "load",
            "pair",
            "predict",
            "report",
            "save",
            "train",
        ),
        "detdistill.run",
    ),
}
"""The module of each name that is imported on first use."""

__all__ = ["UserError", *HOMES, *MODULES]


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return import_module(f"detdistill.{name}")
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'detdistill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
