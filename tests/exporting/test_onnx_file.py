"""ONNX files: equal to their detectors at every batch size and image size, and with nothing to find."""

from pathlib import Path

import onnx
import pytest
import torch

from detdistill.errors import UserError
from detdistill.exporting import check, onnx_file
from detdistill.exporting.runtime import ExportedDetector
from detdistill.exporting.trace import trace
from detdistill.types import Batch
from tests.detectors.builders import shake, tiny
from tests.exporting.conftest import Exported, card_of, export

TOLERANCE = check.TOLERANCES["fp32"]


def noise(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


# On the small ones, the coarsest levels have one cell in a row, which torch could have taken for fixed.
BATCHES = [noise(1, 96, 128), noise(3, 90, 61), noise(2, 160, 224), noise(1, 33, 31), torch.full((1, 3, 64, 64), 127)]
BATCHES = [images.to(torch.uint8) for images in BATCHES]


def assert_equal(exported: Exported, batches: list[torch.Tensor] = BATCHES) -> None:
    found = check.compare(exported.detector, ExportedDetector(exported.path), batches, exported.card, TOLERANCE)
    assert found.detections > 50
    assert found.alone == 0, found
    assert found.score < 1e-5, found
    assert found.box < 1e-2, found


def test_a_dense_detector_is_equal(gfl: Exported) -> None:
    assert gfl.trace.dynamic
    assert_equal(gfl)


@pytest.mark.parametrize("head", ["faster_rcnn", "detr", "rt_detr_v2"])
def test_a_detector_of_each_other_kind_is_equal(head: str, tmp_path: Path) -> None:
    exported = export(head, tmp_path)
    assert exported.trace.dynamic
    assert_equal(exported)


def test_only_standard_operators_are_used(gfl: Exported) -> None:
    model = onnx.load(gfl.path)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    (images,) = model.graph.input
    assert [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim] == [
        "batch",
        3,
        "height",
        "width",
    ]
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [output.name for output in model.graph.output] == ["boxes", "scores", "labels"]


def test_a_fixed_size_takes_smaller_images_and_refuses_larger_ones(tmp_path: Path) -> None:
    detector = shake(tiny("gfl")).eval()
    traced = trace(detector, (96, 128), fixed=True)
    exported = Exported(detector, traced, card_of("gfl", traced, (96, 128)), tmp_path / "fixed.onnx")
    onnx_file.save(onnx_file.to_model(traced, exported.card, 18), exported.path)
    assert not traced.dynamic
    assert_equal(exported, [noise(1, 96, 128), noise(3, 90, 61), noise(1, 33, 31)])
    file = ExportedDetector(exported.path)
    sizes = torch.tensor([[96, 160]])
    large = Batch(noise(1, 96, 160), sizes, sizes, torch.ones(1), ())
    with pytest.raises(UserError, match="takes images of at most 96 x 128"):
        file.detect(large)
    with pytest.raises(Exception, match="Reshape"):  # without our check, the file itself refuses it
        file.session(noise(1, 97, 128).numpy())


def test_the_description_is_in_the_file(gfl: Exported) -> None:
    assert ExportedDetector(gfl.path).card == gfl.card


def test_a_changed_weight_is_seen(gfl: Exported, tmp_path: Path) -> None:
    model = onnx.load(gfl.path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("classifier.weight"))
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] += 1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "changed.onnx")
    found = check.compare(gfl.detector, ExportedDetector(tmp_path / "changed.onnx"), BATCHES, gfl.card, TOLERANCE)
    assert not found.fits(TOLERANCE)


def test_a_detector_without_candidates_is_refused() -> None:
    detector = tiny("gfl")
    detector.__class__ = type("Other", (torch.nn.Module,), {})
    with pytest.raises(UserError, match="no method `candidates`"):
        trace(detector, (96, 128))
