"""Export of trained detectors to the formats of other libraries.

This module imports no export code, because the command line reads these names from it.
"""

from typing import Literal

Format = Literal["onnx", "openvino", "torch", "transformers"]
Precision = Literal["fp32", "fp16", "int8"]

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
"""The suffix of the file of each format that is one graph from pixels to detections. transformers writes a folder."""

_ONNX = ("onnx", "onnxscript", "onnxruntime")
EXTRAS = {"onnx": _ONNX, "openvino": (*_ONNX, "openvino")}
"""The libraries that a format needs; the extra of the package has the format's name."""
