"""Opset 17: operators whose form changed in version 18."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from detdistill.errors import UserError
from detdistill.exporting import check, onnx_file
from detdistill.exporting.onnx_opset17 import to_opset17
from detdistill.exporting.runtime import ExportedDetector


def _graph(op: str, inputs: list[str], axes: list[int] | None = None, **attributes: Any) -> onnx.ModelProto:
    """One node of opset 18 with the inputs `x` (2, 4) and `axes`, which is constant if given."""
    given = [] if axes is None else [numpy_helper.from_array(np.int64(axes), "axes")]
    names = [name for name in ("x", "axes") if name in inputs and not (name == "axes" and given)]
    types = {"x": TensorProto.FLOAT, "axes": TensorProto.INT64}
    outputs = ["y"] if op != "Split" else ["y", "z"]
    graph = helper.make_graph(
        [helper.make_node(op, inputs, outputs, **attributes)],
        "one",
        [helper.make_tensor_value_info(name, types[name], None) for name in names],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        given,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (_graph("ReduceMax", ["x", "axes"], [1], keepdims=0), [3.0, 7.0]),
        (_graph("ReduceMean", ["x", "axes"], [0], keepdims=0), [2.0, 3.0, 4.0, 5.0]),
        (_graph("ReduceMin", ["x"], keepdims=0), 0.0),
        (_graph("Split", ["x"], axis=1, num_outputs=2), [[0.0, 1.0], [4.0, 5.0]]),
    ],
    ids=["max", "mean", "min", "split"],
)
def test_changed_operators_give_the_same_values(model: onnx.ModelProto, expected: Any) -> None:
    to_opset17(model)
    assert model.opset_import[0].version == 17
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    (result,) = onnxruntime.InferenceSession(model.SerializeToString()).run(["y"], {"x": values})
    np.testing.assert_array_equal(result, np.float32(expected))


@pytest.mark.parametrize(
    ("model", "operator"),
    [
        (_graph("ReduceMax", ["x", "axes"]), "ReduceMax"),
        (_graph("Resize", ["x", "", "", "axes"], antialias=1, mode="linear"), "Resize"),
        (_graph("Pad", ["x", "axes", "", "axes"]), "Pad"),
        (_graph("Mish", ["x"]), "Mish"),
    ],
    ids=["reduce", "resize", "pad", "mish"],
)
def test_an_operator_without_equal_is_refused(model: onnx.ModelProto, operator: str) -> None:
    with pytest.raises(UserError, match=f"--opset 17: it can't express {operator} .*; use --opset 18"):
        to_opset17(model)


def test_the_detector_gives_the_same_detections(
    small: Any, model: onnx.ModelProto, images: list[torch.Tensor], card: Any, tmp_path: Any
) -> None:
    to_opset17(model)
    onnx_file.save(model, tmp_path / "old.onnx")
    exported = ExportedDetector(tmp_path / "old.onnx", threads=1)
    found = check.compare(small, exported, check.sample_batches(images), card, check.TOLERANCES["fp32"])
    assert found.alone == 0 and found.detections > 50, found.text()
