"""Exported files as detectors."""

from pathlib import Path

import onnx
import pytest
import torch

from detdistill.errors import UserError
from detdistill.exporting.runtime import ExportedDetector, is_exported
from detdistill.types import Batch


def test_images_of_several_sizes_go_through_in_groups(onnx_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 96, 128), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([[96, 128], [64, 70], [96, 128]])
    batch = Batch(images, sizes, sizes, torch.arange(3), ())
    detector = ExportedDetector(onnx_path)
    calls: list[tuple[int, ...]] = []
    session = detector.session
    detector.session = lambda array: calls.append(array.shape) or session(array)  # type: ignore[assignment]
    detector.session.card = session.card  # type: ignore[attr-defined]
    found = detector.detect(batch)
    assert calls == [(2, 3, 96, 128), (1, 3, 64, 70)]
    for index, (height, width) in enumerate(sizes.tolist()):
        alone = Batch(images[index : index + 1, :, :height, :width], *[sizes[index : index + 1]] * 2, torch.ones(1), ())
        (expected,) = detector.detect(alone)
        torch.testing.assert_close(found[index].boxes, expected.boxes)
        torch.testing.assert_close(found[index].scores, expected.scores)
        assert (found[index].boxes[:, 2] <= width).all() and (found[index].boxes[:, 3] <= height).all()


def test_a_file_that_cannot_be_read_is_one_line(onnx_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.onnx: there is no such file"):
        ExportedDetector(tmp_path / "gone.onnx")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(onnx_path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"damaged\.onnx: onnxruntime can't load it"):
        ExportedDetector(damaged)
    model = onnx.load(onnx_path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(UserError, match=r"foreign\.onnx: it has no description by detdistill"):
        ExportedDetector(tmp_path / "foreign.onnx")


def test_a_file_only_detects(onnx_path: Path) -> None:
    with pytest.raises(UserError, match="can only detect"):
        ExportedDetector(onnx_path).observe(None)
    assert ExportedDetector(onnx_path).backbone_parameters() == []


def test_files_are_known_by_their_suffix() -> None:
    assert is_exported("runs/a.onnx") and is_exported(Path("A.ONNX"))
    assert not is_exported("runs/a") and not is_exported("gfl:resnet18")
