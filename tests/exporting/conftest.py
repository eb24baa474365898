"""Traced detectors and their files, made once: a trace takes seconds."""

from pathlib import Path
from typing import NamedTuple

import pytest

from detdistill.exporting import onnx_file
from detdistill.exporting.card import ExportCard
from detdistill.exporting.trace import Trace, trace
from detdistill.types import Detector
from tests.detectors.builders import CLASSES, shake, tiny


class Exported(NamedTuple):
    """A detector, its trace for images of any size, and its ONNX file."""

    detector: Detector
    trace: Trace
    card: ExportCard
    path: Path


def card_of(head: str, traced: Trace, canvas: tuple[int, int] = (0, 0)) -> ExportCard:
    """A description with plausible numbers."""
    return ExportCard(
        head=head,
        classes=CLASSES,
        category_ids=(7, 8, 9),
        image_size=(96, 128),
        multiple=32 if traced.dynamic else None,
        canvas=canvas,
        mean=None,
        std=None,
        precision="fp32",
        threshold=0.01,
        detections=100,
        parameters=1,
        operations=2,
        version="0",
    )


def export(head: str, folder: Path) -> Exported:
    """Trace a small detector with random weights, and write it."""
    detector = shake(tiny(head)).eval()
    traced = trace(detector, (96, 128))
    card, path = card_of(head, traced), folder / f"{head}.onnx"
    onnx_file.save(onnx_file.to_model(traced, card, 18), path)
    return Exported(detector, traced, card, path)


@pytest.fixture(scope="session")
def gfl(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export("gfl", tmp_path_factory.mktemp("gfl"))
