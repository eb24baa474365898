"""Small detectors with their ONNX files, for tests that need another one than `small`."""

from pathlib import Path
from typing import NamedTuple

import torch

from detdistill.exporting import onnx_file
from detdistill.exporting.card import ExportCard
from detdistill.exporting.trace import Trace, trace
from detdistill.types import Detector
from tests.detectors.builders import CLASSES, shake, tiny


class Exported(NamedTuple):
    """A detector, its trace, and its ONNX file."""

    detector: Detector
    trace: Trace
    card: ExportCard
    path: Path


def card_of(head: str, canvas: tuple[int, int] | None = None) -> ExportCard:
    """A description with plausible numbers. canvas: the fixed size, or None."""
    return ExportCard(
        head=head,
        classes=CLASSES,
        category_ids=(7, 8, 9),
        image_size=(96, 128),
        multiple=32 if canvas is None else None,
        canvas=canvas or (0, 0),
        mean=None,
        std=None,
        precision="fp32",
        threshold=0.01,
        detections=100,
        parameters=1,
        operations=2,
        version="0",
    )


def export(head: str, folder: Path, fixed: bool = False) -> Exported:
    """Trace a small detector with random weights, and write it. fixed: for images of at most 96 x 128 pixels."""
    detector = shake(tiny(head)).eval()
    if head == "faster_rcnn":
        with torch.no_grad():  # so low that onnxruntime's own sigmoid would be 0
            detector.model.rpn.head.cls_logits.bias -= 15  # type: ignore[attr-defined]
    traced = trace(detector, (96, 128), fixed=fixed)
    card, path = card_of(head, None if traced.dynamic else (96, 128)), folder / f"{head}.onnx"
    onnx_file.save(onnx_file.to_model(traced, card, 18), path)
    return Exported(detector, traced, card, path)
