"""ONNX files of the newest opset."""

from typing import Any

import torch

from detdistill.exporting import check, onnx_file
from detdistill.exporting.runtime import ExportedDetector


def test_the_newest_opset_gives_the_same_detections(
    small: Any, traced: Any, images: list[torch.Tensor], card: Any, tmp_path: Any
) -> None:
    model = onnx_file.to_model(traced, card, 21)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [21]
    onnx_file.save(model, tmp_path / "new.onnx")
    exported = ExportedDetector(tmp_path / "new.onnx", threads=1)
    found = check.compare(small, exported, check.sample_batches(images), card, check.TOLERANCES["fp32"])
    assert found.alone == 0 and found.detections > 50, found.text()
