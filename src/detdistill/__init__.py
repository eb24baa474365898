"""Knowledge distillation for object detectors.

    teacher = dd.load("runs/teacher")
    student = dd.build("gfl:resnet18", classes=["circle", "square"])
    distillation = dd.Distillation(student, [method])
    terms = distillation(batch, targets, teacher_output=teacher.observe(batch, need=distillation.need))

The names below are fetched on first use, so that `import detdistill` and `detdistill --help` don't wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from detdistill.errors import UserError

if TYPE_CHECKING:
    from detdistill import geometry, losses, methods, types
    from detdistill.engine.distillation import Distillation
    from detdistill.engine.fit import fit
    from detdistill.engine.schedule import Schedule
    from detdistill.run import build, distill, evaluate, export, load, predict, train

__all__ = [
    "Distillation",
    "Schedule",
    "UserError",
    "build",
    "distill",
    "evaluate",
    "export",
    "fit",
    "geometry",
    "load",
    "losses",
    "methods",
    "predict",
    "testing",
    "train",
    "types",
]

_MODULES = ("geometry", "losses", "methods", "testing", "types")
_HOMES = {  # the others live in detdistill.run
    "Distillation": "detdistill.engine.distillation",
    "Schedule": "detdistill.engine.schedule",
    "fit": "detdistill.engine.fit",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"detdistill.{name}")
    if name in __all__:
        return getattr(import_module(_HOMES.get(name, "detdistill.run")), name)
    raise AttributeError(f"module 'detdistill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
