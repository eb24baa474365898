"""Exports of models of timm for images of any size."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def symbolic_padding() -> Iterator[None]:
    """Inside this context, timm computes TensorFlow's padding with integers.

    timm divides with floating-point numbers. While torch exports a model, sizes are symbols, and torch does not
    simplify such formulas: the export of one backbone would take hours.
    """
    with patch("timm.layers.padding.get_same_padding", _same_padding):
        yield


def _same_padding(size: Any, kernel_size: int, stride: int, dilation: int) -> Any:
    missing = (-(-size // stride) - 1) * stride + (kernel_size - 1) * dilation + 1 - size
    return missing if missing > 0 else 0
