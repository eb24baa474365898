"""Exports of models of transformers for images of any size.

While torch exports a model, the sizes of images are symbols. In some places transformers turns a size into a Python
number, which would fix it in the exported file, or checks it by an operation that ONNX does not have.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers.models.d_fine import modeling_d_fine
from transformers.models.rt_detr import modeling_rt_detr
from transformers.models.rt_detr_v2 import modeling_rt_detr_v2

linspace = torch.linspace


@contextmanager
def symbolic_sizes() -> Iterator[None]:
    """Inside this context, transformers computes positions from symbols.

    `torch_int` returns its argument, the caches of positions by size are off, `torch.linspace` accepts a symbol, and
    the checks are left out. The exported file is compared with the detector anyway.
    """
    with ExitStack() as stack:
        stack.enter_context(patch("transformers.pytorch_utils.is_torchdynamo_compiling", lambda: True))
        for module in (modeling_rt_detr, modeling_rt_detr_v2, modeling_d_fine):
            stack.enter_context(patch.object(module, "torch_int", lambda value: value))
            if hasattr(module, "torch_compilable_check"):
                stack.enter_context(patch.object(module, "torch_compilable_check", lambda *_: None))
        stack.enter_context(patch("torch.linspace", _linspace))
        yield


def _linspace(start: Any, end: Any, steps: Any, **options: Any) -> Tensor:
    """torch.linspace, written as an arange if the number of steps is a symbol."""
    if isinstance(steps, int):
        return linspace(start, end, steps, **options)
    places = torch.arange(steps, device=options.get("device"))  # transformers uses a distance of 1 between the values
    return (places + start).to(options.get("dtype") or torch.float32)
