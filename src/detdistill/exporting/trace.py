"""A detector as one graph of torch operations, from padded images to detections."""

import logging
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from detdistill.detectors.candidates import Candidates, plain_suppression
from detdistill.detectors.timm.symbolic import symbolic_padding
from detdistill.detectors.transformers.symbolic import symbolic_sizes
from detdistill.errors import UserError, one_line
from detdistill.evaluation.evaluate import evaluating
from detdistill.exporting.time_limit import time_limit
from detdistill.types import MULTIPLE, Batch, Detector

# Large enough for two cells in each direction on a level of stride 128: torch takes a size of 1 for fixed.
EXAMPLE = (288, 416)
# Seconds of processor time. A trace takes 5 to 60; that of shifted windows (Swin) with symbols does not end.
LONGEST = 180
MOST_CELLS = 256  # per side and multiple of 32 pixels: images up to 8192 pixels


class Detect(nn.Module):
    """forward: images (B, 3, H, W) uint8, padded, and their valid sizes (B, 2), to boxes (B, D, 4), scores and labels.

    See `Candidates.table`.
    """

    def __init__(self, detector: Any):
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch = Batch(images, sizes, sizes, sizes[:, 0], ())
        candidates: Candidates = self.detector.candidates(batch)
        return candidates.table()


@dataclass(frozen=True)
class Trace:
    """The exported graph of a detector.

    program: `Detect` as a program of torch.
    dynamic: True if the padded images can have any multiple of 32 pixels; else they have the traced size.
    reason: why the size is fixed, on one line, or ''.
    """

    program: ExportedProgram
    dynamic: bool
    reason: str = ""


def trace(detector: Detector, canvas: tuple[int, int], *, fixed: bool = False, plain: bool = False) -> Trace:
    """Trace a detector in evaluation mode, for batches of any number, and images of any size where it allows that.

    canvas: (height, width) of the padded images if the size is fixed. fixed: fix it in any case. plain: use operators
    of torch and torchvision only. Raises UserError if torch can't export the detector.
    """
    if not hasattr(detector, "candidates"):
        problem = f"{detector.info.kind} has no method `candidates`, which gives its boxes before suppression"
        raise UserError(f"export: {problem}; add it, as the guide shows")
    reason = ""
    if not fixed:
        try:
            with time_limit(LONGEST):
                return Trace(_program(detector, EXAMPLE, dynamic=True, plain=plain), dynamic=True)
        except Exception as error:  # torch raises errors of many types for what it can't trace
            reason = one_line(error, 160)
    try:
        return Trace(_program(detector, canvas, dynamic=False, plain=plain), dynamic=False, reason=reason)
    except Exception as error:
        raise UserError(
            f"export: torch can't export {detector.info.kind} with this backbone ({one_line(error, 160)}); train "
            "another backbone"
        ) from error


def _program(detector: Detector, canvas: tuple[int, int], *, dynamic: bool, plain: bool) -> ExportedProgram:
    # Two images, and not one: torch takes a size of 1 for fixed.
    images = torch.zeros(2, 3, *canvas, dtype=torch.uint8)
    sizes = torch.tensor([canvas, canvas])
    batch = Dim("batch", min=1, max=4096)
    shapes: dict[str, dict[int, Any]] = {"images": {0: batch}, "sizes": {0: batch}}
    if dynamic:
        for axis, name in ((2, "rows"), (3, "columns")):
            shapes["images"][axis] = MULTIPLE * Dim(name, min=1, max=MOST_CELLS)
    suppression = plain_suppression() if plain else nullcontext()
    with (
        warnings.catch_warnings(),
        evaluating(detector),
        torch.no_grad(),
        symbolic_sizes(),
        symbolic_padding(),
        suppression,
    ):
        warnings.simplefilter("ignore")  # of torch and torchvision, on their own functions
        logging.getLogger("torch.fx.experimental.symbolic_shapes").setLevel(logging.ERROR)  # pages of formulas
        return torch.export.export(Detect(detector), (images, sizes), dynamic_shapes=shapes, strict=False)
