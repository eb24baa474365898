"""The formats that are one graph from pixels to detections: how a file is written and loaded again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from detdistill.exporting.card import ExportCard
from detdistill.exporting.trace import Trace

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Job:
    """What a file is made of.

    trace, card: of the detector; `card.precision` is that of the file. opset: of ONNX. samples: images of the
    comparison, (3, H, W) uint8. calibration: images for int8, else none. say: prints a line.
    """

    trace: Trace
    card: ExportCard
    opset: int
    samples: Sequence[Tensor]
    calibration: Sequence[Tensor]
    say: Callable[[str], None]


@dataclass(frozen=True)
class GraphFormat:
    """One format.

    write: writes the file and those of `companions`. The path may be a temporary one.
    runtime: the program that runs the file, for messages.
    precisions: that it can have.
    companions: suffixes of further files beside it.
    is_plain: its graph has operators of torch and torchvision only.
    """

    write: Callable[[Job, Path], None]
    runtime: str
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8")
    companions: tuple[str, ...] = ()
    is_plain: bool = False


def _onnx_model(job: Job, precision: str) -> "onnx.ModelProto":
    """The ONNX model of this precision."""
    from detdistill.exporting import onnx_file  # its libraries are extras

    model = onnx_file.to_model(job.trace, job.card, job.opset)
    if precision == "fp32":
        return model
    from detdistill.exporting import onnx_half, onnx_int8, onnx_layers

    model = onnx_layers.simplified(model)
    if precision == "int8":
        return onnx_int8.to_int8(model, job.calibration)
    if left := onnx_half.to_half(model, job.samples):
        job.say(f"note: {left} layers stay in single precision, because their values are too large for half precision")
    return model


def _write_onnx(job: Job, path: Path) -> None:
    from detdistill.exporting import onnx_file

    onnx_file.save(_onnx_model(job, job.card.precision), path)


def _write_openvino(job: Job, path: Path) -> None:
    from detdistill.exporting import openvino_file

    # OpenVINO makes half precision itself.
    precision = "int8" if job.card.precision == "int8" else "fp32"
    openvino_file.save(_onnx_model(job, precision), job.card, path)


def _write_torch(job: Job, path: Path) -> None:
    from detdistill.exporting import torch_file

    torch_file.save(job.trace, job.card, path)


GRAPH_FORMATS = {
    "onnx": GraphFormat(_write_onnx, "onnxruntime"),
    "openvino": GraphFormat(_write_openvino, "openvino", companions=(".bin",)),
    "torch": GraphFormat(_write_torch, "torch", precisions=("fp32",), is_plain=True),
}
