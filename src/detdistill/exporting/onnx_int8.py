"""An ONNX graph whose layers compute with integers of 8 bits."""

import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from onnx import NodeProto
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from torch import Tensor

from detdistill.exporting.onnx_layers import layers, leading

BETWEEN = ("Relu", "Clip", "MaxPool")
BOX = 4


class _Reader(CalibrationDataReader):
    def __init__(self, images: Sequence[Tensor]):
        self.images = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        image = next(self.images, None)
        return None if image is None else {"images": image[None].numpy()}


def to_int8(model: onnx.ModelProto, images: Sequence[Tensor]) -> onnx.ModelProto:
    """The quantized model of a simplified one: operators QuantizeLinear and DequantizeLinear around its layers.

    images: for calibration, (3, H, W) uint8 each; the range of a value is that over all of them. Weights have one scale
    per channel.
    """
    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.onnx", Path(folder) / "target.onnx"
        onnx.save_model(model, str(source))
        previous = logging.root.manager.disable
        logging.disable(logging.WARNING)  # it recommends a step that `simplified` did
        try:
            quantize_static(
                source,
                target,
                _Reader(images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                op_types_to_quantize=sorted({node.op_type for node in chosen(model.graph)}),
                nodes_to_quantize=[node.name for node in chosen(model.graph)],
            )
        finally:
            logging.disable(previous)
        return onnx.load(target)


def chosen(graph: onnx.GraphProto) -> list[NodeProto]:
    """The nodes to quantize: the layers, and what can be computed with integers between them.

    Layers that predict keep their weights and outputs: those that no other layer follows, and those with four outputs,
    which are boxes that a decoder refines. A step of 8 bits is too large for a coordinate.
    """
    found = layers(graph)
    weights = {tensor.name: tensor.dims for tensor in graph.initializer}
    wanted = leading(graph, found)
    return [
        node
        for node in graph.node
        if node.output[0] in wanted
        and (node.op_type in BETWEEN or (node in found and outputs(node, weights[node.input[1]]) != BOX))
    ]


def outputs(node: NodeProto, shape: Sequence[int]) -> int:
    """The number of outputs of a layer with a weight of this shape."""
    is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return shape[0] if node.op_type == "Conv" or is_transposed else shape[1] if len(shape) > 1 else 1
