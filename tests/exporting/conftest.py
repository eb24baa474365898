"""A small detector, traced once for all tests of this folder, and its ONNX model."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from detdistill import run
from detdistill.detectors.build import build
from detdistill.exporting.card import ExportCard
from detdistill.exporting.describe import make_card
from detdistill.exporting.onnx_file import to_model
from detdistill.exporting.trace import Trace, trace
from detdistill.recipe import DataConfig, ModelConfig
from detdistill.run.exports import sample_images

NAMES = ("disc", "square", "star", "cross", "plank", "ladder")  # of the built-in images
SIZE = (64, 96)
FIELDS: dict[str, Any] = {"strides": (16, 32), "channels": 16, "tower_depth": 1, "backbone_weights": "none"}


@pytest.fixture(scope="session")
def small() -> Any:
    """A GFL with random weights that detects something everywhere. Tests must not modify it."""
    torch.manual_seed(0)
    detector: Any = build(ModelConfig(name="gfl:resnet10t", **FIELDS), NAMES)
    with torch.no_grad():
        for path, weight in detector.named_parameters():
            if path in ("head.classifier.weight", "head.regressor.weight"):
                weight.normal_(std=1.0)
    return detector.eval()


@pytest.fixture(scope="session")
def small_run(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of `small`. Tests must not modify it."""
    folder = tmp_path_factory.mktemp("small") / "run"
    return run.save(small, folder, image_size=SIZE)


@pytest.fixture(scope="session")
def images() -> list[torch.Tensor]:
    """Nine drawn images."""
    return sample_images(None, DataConfig(image_size=SIZE), SIZE)


@pytest.fixture(scope="session")
def traced(small: Any) -> Trace:
    """The trace of `small`, for images of any size."""
    return trace(small, SIZE)


@pytest.fixture(scope="session")
def plain(small: Any) -> Trace:
    """The trace of `small` with operators of torch and torchvision only."""
    return trace(small, SIZE, plain=True)


@pytest.fixture(scope="session")
def card(small: Any) -> ExportCard:
    """The card of `small` in fp32."""
    return make_card(small, (3, 5, 9, 10, 11, 12), SIZE, None, "fp32")


@pytest.fixture(scope="session")
def onnx_bytes(traced: Trace, card: ExportCard) -> bytes:
    """The ONNX model of `small`, opset 18."""
    return to_model(traced, card, 18).SerializeToString()


@pytest.fixture(scope="session")
def onnx_path(onnx_bytes: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file of `small`. Tests must not modify it."""
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    path.write_bytes(onnx_bytes)
    return path


@pytest.fixture
def model(onnx_bytes: bytes) -> onnx.ModelProto:
    """A copy of the ONNX model."""
    return onnx.ModelProto.FromString(onnx_bytes)


@pytest.fixture
def calls_without_tracing(traced: Trace, plain: Trace, onnx_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run.export` uses the shared trace and ONNX model."""
    from detdistill.exporting import onnx_file

    def shared_trace(*_: Any, plain: bool, fixed: bool) -> Trace:
        return shared[plain]

    def shared_model(_: Trace, card: ExportCard, opset: int) -> onnx.ModelProto:
        model = onnx.ModelProto.FromString(onnx_bytes)
        for entry in model.metadata_props:
            entry.value = card.metadata()[entry.key]
        return model

    shared = {False: traced, True: plain}
    monkeypatch.setattr("detdistill.exporting.trace.trace", shared_trace)
    monkeypatch.setattr(onnx_file, "to_model", shared_model)
