"""Quantized files: weights of 8 bits, the decoding in single precision, and a loss of AP that is refused."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto

from detdistill import run
from detdistill.errors import UserError
from detdistill.exporting.onnx_int8 import to_int8
from detdistill.exporting.onnx_layers import layers, simplified
from detdistill.recipe import DataConfig

DATA = DataConfig(path="shapes:24", image_size=(64, 96))


def test_layers_have_weights_of_8_bits_except_those_that_predict(
    model: onnx.ModelProto, images: list[torch.Tensor]
) -> None:
    model = simplified(model)
    predicting = ("detector.head.classifier.weight", "detector.head.regressor.weight")
    names = {node.name for node in layers(model.graph) if node.input[1] not in predicting}
    assert len(names) == len(layers(model.graph)) - 4  # two levels
    quantized = to_int8(model, images[:3])
    makers = {output: node for node in quantized.graph.node for output in node.output}
    integers = {tensor.name for tensor in quantized.graph.initializer if tensor.data_type == TensorProto.INT8}
    found = [node for node in quantized.graph.node if node.name in names]
    assert len(found) == len(names) > 15
    for node in found:
        weight = makers[node.input[1]]
        assert weight.op_type == "DequantizeLinear" and weight.input[0] in integers
    assert {node.op_type for node in quantized.graph.node if node.op_type == "NonMaxSuppression"}
    quantizers = {name for node in quantized.graph.node if node.op_type == "QuantizeLinear" for name in node.input[:1]}
    decoders = [node for node in quantized.graph.node if node.op_type in ("Sigmoid", "Softmax", "NonMaxSuppression")]
    assert decoders and not quantizers & {output for node in decoders for output in node.output}
    assert quantized.ByteSize() < 0.5 * model.ByteSize()


@pytest.mark.usefixtures("calls_without_tracing")
def test_the_loss_of_ap_is_measured_and_refused(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    values = iter([{"AP": 30.0}, {"AP": 28.9}] * 2)
    monkeypatch.setattr("detdistill.run.exports.measure", lambda *_, **__: (next(values), []))
    with pytest.raises(UserError, match=r"loses 1\.10 AP, and 1 is allowed; accept it with --max-loss or --force"):
        run.export(small_run, tmp_path / "m.onnx", precision="int8", data=DATA)
    assert list(tmp_path.iterdir()) == []
    run.export(small_run, tmp_path / "m.onnx", precision="int8", data=DATA, max_loss=1.2)
    record = json.loads((tmp_path / "m.onnx.json").read_text())
    assert record["precision"] == "int8" and record["AP"] == {"detector": 30.0, "file": 28.9}
    assert record["images_of_calibration"] == 24
