"""ONNX files: equal to their detectors at every batch size and image size, and with nothing to find."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from detdistill.errors import UserError
from detdistill.exporting import check, onnx_file
from detdistill.exporting.card import ExportCard
from detdistill.exporting.runtime import ExportedDetector
from detdistill.exporting.trace import Trace, trace
from detdistill.types import Batch, Detector
from tests.detectors.builders import tiny
from tests.exporting.builders import Exported, export

TOLERANCE = check.TOLERANCES["fp32"]


def noise(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


# On the small ones, the coarsest levels have one cell in a row, which torch could have taken for fixed.
GRAY = torch.full((1, 3, 64, 64), 127, dtype=torch.uint8)
BATCHES = [noise(1, 96, 128), noise(3, 90, 61), noise(2, 160, 224), noise(1, 33, 31), GRAY]


def assert_equal(detector: Detector, card: ExportCard, path: Path, batches: list[torch.Tensor] = BATCHES) -> None:
    found = check.compare(detector, ExportedDetector(path), batches, card, TOLERANCE)
    assert found.detections > 50, found
    assert found.alone == 0, found
    assert found.score < 1e-4, found
    assert found.box < 1e-2, found


def test_a_dense_detector_is_equal(small: Any, card: ExportCard, onnx_path: Path) -> None:
    assert_equal(small, card, onnx_path)


@pytest.mark.parametrize("head", ["faster_rcnn", "detr", "rt_detr_v2"])
def test_a_detector_of_each_other_kind_is_equal(head: str, tmp_path: Path) -> None:
    exported = export(head, tmp_path)
    assert exported.trace.dynamic
    assert_equal(exported.detector, exported.card, exported.path)


def test_the_newest_opset_gives_the_same_detections(small: Any, traced: Trace, card: ExportCard, tmp_path: Path):
    model = onnx_file.to_model(traced, card, 21)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [21]
    onnx_file.save(model, tmp_path / "new.onnx")
    assert_equal(small, card, tmp_path / "new.onnx")


def test_only_standard_operators_are_used(model: onnx.ModelProto) -> None:
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    (images,) = model.graph.input
    shape = [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim]
    assert shape == ["batch", 3, "height", "width"]
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [output.name for output in model.graph.output] == ["boxes", "scores", "labels"]


def test_the_description_is_in_the_file(card: ExportCard, onnx_path: Path) -> None:
    assert ExportedDetector(onnx_path).card == card


def test_a_fixed_size_takes_smaller_images_and_refuses_larger_ones(tmp_path: Path) -> None:
    exported: Exported = export("gfl", tmp_path, fixed=True)
    assert not exported.trace.dynamic
    small_images = [noise(1, 96, 128), noise(3, 90, 61), noise(1, 33, 31)]
    assert_equal(exported.detector, exported.card, exported.path, small_images)
    file = ExportedDetector(exported.path)
    sizes = torch.tensor([[96, 160]])
    large = Batch(noise(1, 96, 160), sizes, sizes, torch.ones(1), ())
    with pytest.raises(UserError, match="takes images of at most 96 x 128"):
        file.detect(large)
    with pytest.raises(Exception, match="Reshape"):  # without our check, the file itself refuses it
        file.session(noise(1, 97, 128).numpy())


def test_a_detector_without_candidates_is_refused() -> None:
    detector = tiny("gfl")
    detector.__class__ = type("Other", (torch.nn.Module,), {})
    with pytest.raises(UserError, match="no method `candidates`"):
        trace(detector, (96, 128))
