"""Half precision: small files, the same detections, and layers with large values stay in single precision."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from detdistill.exporting import check, onnx_file
from detdistill.exporting.onnx_half import LARGEST, to_half
from detdistill.exporting.onnx_layers import layers, simplified
from detdistill.exporting.runtime import ExportedDetector


def _product(factor: float) -> onnx.ModelProto:
    """relu(images * 2) * factor, as two matrix products of 1 x 1 with a Relu between them."""
    weights = [np.float32([[2.0]]), np.float32([[factor]])]
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["pixels", "weight_0"], ["double"]),
        helper.make_node("Relu", ["double"], ["positive"]),
        helper.make_node("MatMul", ["positive", "weight_1"], ["result"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 3, "height", 1])],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, ["batch", 3, "height", 1])],
        [numpy_helper.from_array(weight, f"weight_{index}") for index, weight in enumerate(weights)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_values_stay_in_half_precision_between_two_layers() -> None:
    model = _product(0.5)
    assert to_half(model, [torch.full((3, 4, 1), 100, dtype=torch.uint8)]) == 0
    operators = [node.op_type for node in model.graph.node]
    assert operators == ["Cast", "Cast", "MatMul", "Relu", "MatMul", "Cast"]
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT16}


@pytest.mark.parametrize(("factor", "left"), [(LARGEST / 200, 0), (LARGEST / 199, 1), (LARGEST + 1, 1)])
def test_a_layer_with_large_values_stays_in_single_precision(factor: float, left: int) -> None:
    model = _product(factor)
    assert to_half(model, [torch.full((3, 4, 1), 100, dtype=torch.uint8)]) == left
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert list(weights.values()).count(TensorProto.FLOAT16) == 2 - left


def test_the_file_has_half_the_size_and_equal_detections(
    small: Any, model: onnx.ModelProto, images: list[torch.Tensor], card: Any, tmp_path: Any
) -> None:
    model = simplified(model)
    count, size = len({node.input[1] for node in layers(model.graph)}), model.ByteSize()
    assert to_half(model, images) == 0
    halves = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16]
    assert sum(len(tensor.dims) == 4 for tensor in halves) == count
    assert model.ByteSize() < 0.52 * size + 100_000
    onnx_file.save(model, tmp_path / "half.onnx")
    exported = ExportedDetector(tmp_path / "half.onnx", threads=1)
    found = check.compare(small, exported, check.sample_batches(images), card, check.TOLERANCES["fp16"])
    assert found.fits(check.TOLERANCES["fp16"]) and found.detections > 50, found.text()
