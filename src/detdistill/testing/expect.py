"""What the checks have in common."""

from typing import Any

import torch
from torch import Tensor

from detdistill.types import Batch, DetectorOutput, Need, Predictions, Targets

CLOSE = 1e-3  # of a continuation to the plain look: other kernels for other shapes, boxes in pixels


def expect(held: bool, message: str) -> None:
    if not held:
        raise AssertionError(message)


def same(got: Tensor | None, wanted: Tensor | None, what: str) -> None:
    expect((got is None) == (wanted is None), f"{what}: one has it, the other has not")
    if got is not None and wanted is not None:
        torch.testing.assert_close(
            got, wanted, rtol=CLOSE, atol=CLOSE, msg=lambda text: f"{what}: {' '.join(text.split())}"
        )


def same_stage(got: Predictions, wanted: Predictions, what: str) -> None:
    for name in ("logits", "boxes", "background", "quality", "edges"):
        same(getattr(got, name), getattr(wanted, name), f"{what}, {name}")


def look(subject: Any, batch: Batch, targets: Targets | None = None, **need: Any) -> DetectorOutput:
    with torch.no_grad():
        output = subject.observe(batch, targets, need=Need(**need))
    expect(isinstance(output, DetectorOutput), f"observe returns a {type(output).__name__}")
    return output
