"""The layers with weights in an ONNX graph, and the values that flow through it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper
from torch import Tensor

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its constants computed and with fused batch norms, still of standard operators only."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        options.optimized_model_filepath = str(file)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        result = onnx.load(file)
    del result.opset_import[:]  # onnxruntime names its own operators too, which the graph does not use
    result.opset_import.extend(model.opset_import)
    onnx.checker.check_model(result)
    return result


def layers(graph: onnx.GraphProto) -> list[NodeProto]:
    """The convolutions and matrix products whose second input is a weight, in the order of the graph."""
    weights = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    return [node for node in graph.node if node.op_type in LAYERS and node.input[1] in weights]


def leading(graph: onnx.GraphProto, targets: Iterable[NodeProto]) -> set[str]:
    """The tensors from which a path leads to one of the nodes."""
    ends = {node.output[0] for node in targets}
    wanted: set[str] = set()
    for node in reversed(graph.node):
        if ends & set(node.output) or wanted & set(node.output):
            wanted |= set(node.input)
    return wanted


def largest(model: onnx.ModelProto, names: Sequence[str], images: Sequence[Tensor]) -> dict[str, float]:
    """The largest absolute value of each tensor over images (3, H, W) uint8. `names` are float tensors."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    outputs = [f"largest_{index}" for index in range(len(names))]
    for name, output in zip(names, outputs, strict=True):
        watched.graph.node.append(helper.make_node("Abs", [name], [f"{output}_abs"]))
        watched.graph.node.append(helper.make_node("ReduceMax", [f"{output}_abs"], [output], keepdims=0))
        watched.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rows = [session.run(outputs, {"images": image[None].numpy()}) for image in images]
    values: NDArray[np.float64] = np.max(np.asarray(rows, dtype=np.float64), axis=0)
    return dict(zip(names, values.tolist(), strict=True))
