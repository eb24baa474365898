"""The graph of a detector as files of OpenVINO: NAME.xml, and NAME.bin with the weights."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import openvino

from detdistill.exporting import onnx_file
from detdistill.exporting.card import ExportCard

SECTION = "detdistill"  # of the description inside the file


def save(model: onnx.ModelProto, card: ExportCard, path: Path) -> None:
    """Convert an ONNX model and write it as `path`, NAME.xml, and NAME.bin beside it.

    With the card's precision fp16, the weights are stored in half precision; the device chooses how it computes.
    """
    with TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        onnx_file.save(model, source)
        converted = openvino.convert_model(str(source))
        for key, value in card.metadata().items():
            converted.set_rt_info(value, [SECTION, key])
        openvino.save_model(converted, str(path), compress_to_fp16=card.precision == "fp16")


def load(path: Path, threads: int) -> tuple[Any, dict[str, str]]:
    """The compiled model for the CPU, in single precision, and its metadata. Raises an error of openvino."""
    core = openvino.Core()
    model = core.read_model(str(path))
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    metadata = {}
    if model.has_rt_info([SECTION]):
        metadata = {key: str(model.get_rt_info([SECTION, key]).astype(str)) for key in model.get_rt_info(SECTION).value}
    return core.compile_model(model, "CPU", options), metadata
