"""The formats that are one graph from pixels to detections: how a file is written and loaded again."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detdistill.exporting import onnx_file
from detdistill.exporting.card import ExportCard
from detdistill.exporting.trace import Trace


@dataclass(frozen=True)
class GraphFormat:
    """One format.

    suffix: of the file. write: (trace, card, path, opset of ONNX) writes the file. The path may be a temporary one.
    runtime: the program that runs the file, for messages.
    """

    suffix: str
    write: Callable[[Trace, ExportCard, Path, int], None]
    runtime: str


def _write_onnx(trace: Trace, card: ExportCard, path: Path, opset: int) -> None:
    onnx_file.save(onnx_file.to_model(trace, card, opset), path)


GRAPH_FORMATS = {"onnx": GraphFormat(".onnx", _write_onnx, "onnxruntime")}
