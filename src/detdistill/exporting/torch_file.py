"""The graph of a detector as a file of `torch.export`, which torch and torchvision load without this package.

Its inputs are `images` (B, 3, H, W) uint8, padded with zeros at the right and below to multiples of `multiple` or to
`canvas` of the card, and `sizes` (B, 2) int64, their (height, width) without the padding.
"""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from detdistill.exporting.card import ExportCard
from detdistill.exporting.trace import Trace

CARD = "detdistill.json"  # the extra file with the card


def save(trace: Trace, card: ExportCard, path: Path) -> None:
    """Write a trace whose suppression is torchvision's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(trace.program, str(path), extra_files={CARD: json.dumps(card.metadata())})


def load(path: Path) -> tuple[Any, dict[str, str]]:
    """The module of the file, and its metadata; empty if it has none. Raises an error of torch if it is damaged."""
    import torchvision.ops  # noqa: F401 # it registers the operators that the file uses

    extra: dict[str, Any] = {CARD: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra)
    # torch's guards refuse images whose coarsest map has one row, because it takes a size of 1 for another case.
    return program.module(check_guards=False), json.loads(extra[CARD] or "{}")
