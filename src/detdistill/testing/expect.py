"""Expectations of the checks, and the calls that they share."""

from typing import Any

import torch
from torch import Tensor

from detdistill.errors import one_line
from detdistill.types import Batch, DetectorOutput, Need, Predictions, Targets

# Relative and absolute tolerance between a continuation and the predictions that it repeats; boxes are in pixels. It
# allows for the other kernels that torch chooses for other shapes.
TOLERANCE = 1e-3


class CheckError(AssertionError):
    """An expectation of a check does not hold."""


def expect(condition: bool, message: str, see: str = "") -> None:
    """Raises CheckError with `message` unless `condition` is true. see: what to read about it in detdistill.types."""
    if not condition:
        raise CheckError(f"{message} (see detdistill.types.{see})" if see else message)


def expect_close(actual: Tensor | None, expected: Tensor | None, name: str, see: str) -> None:
    """Raises CheckError unless both tensors are None, or equal within TOLERANCE. name: of the tensor, for messages."""
    missing = "is missing" if actual is None else "should be None"
    expect((actual is None) == (expected is None), f"{name} {missing}", see)
    if actual is not None and expected is not None:
        try:
            torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)
        except AssertionError as error:
            reason = one_line(error)
            raise CheckError(f"{name} differs from what was expected: {reason} (see detdistill.types.{see})") from None


def expect_same_predictions(actual: Predictions, expected: Predictions, name: str, see: str) -> None:
    """Raises CheckError unless the predictions are equal within TOLERANCE. name: of the stage, for messages."""
    for field in ("logits", "boxes", "background", "quality", "edges"):
        expect_close(getattr(actual, field), getattr(expected, field), f"{name}: {field}", see)


def observe(detector: Any, batch: Batch, targets: Targets | None = None, **need: Any) -> DetectorOutput:
    """`detector.observe` under no_grad. need: fields of `Need`."""
    with torch.no_grad():
        output = detector.observe(batch, targets, need=Need(**need))
    problem = f"observe returned a {type(output).__name__}, expected a DetectorOutput"
    expect(isinstance(output, DetectorOutput), problem, "DetectorOutput")
    return output
