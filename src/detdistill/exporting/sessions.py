"""Exported files, loaded by the runtime of their format on the CPU."""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from detdistill.errors import UserError, one_line
from detdistill.exporting.card import ExportCard

Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


class Session(Protocol):
    """A file that a runtime has loaded.

    threads of its constructor: number of threads of one operation; 0 lets the runtime choose. The constructor raises
    UserError if the file is damaged or not one of ours.
    """

    card: ExportCard

    @abstractmethod
    def __call__(self, images: NDArray[np.uint8]) -> Arrays:
        """Images (B, 3, H, W), RGB, to boxes (B, D, 4), scores (B, D) and labels (B, D); see `Candidates.table`."""
        ...


class ONNXSession:
    """An ONNX file in onnxruntime; see `Session`."""

    def __init__(self, path: Path, threads: int = 0):
        try:
            import onnxruntime
        except ImportError:
            raise UserError(f"{path}: onnxruntime is missing; install it with `pip install onnxruntime`") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # its errors are raised as exceptions too
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has its own types of errors
            raise _damaged(path, "onnxruntime", error) from None
        self.card = ExportCard.read(self.session.get_modelmeta().custom_metadata_map, str(path))

    def __call__(self, images: NDArray[np.uint8]) -> Arrays:
        boxes, scores, labels = self.session.run(None, {"images": images})
        return boxes, scores, labels


class OpenVINOSession:
    """NAME.xml in OpenVINO; see `Session`. NAME.bin must lie beside it."""

    def __init__(self, path: Path, threads: int = 0):
        try:
            from detdistill.exporting import openvino_file
        except ImportError:
            raise UserError(f"{path}: openvino is missing; install it with `pip install openvino`") from None
        if not (weights := path.with_suffix(".bin")).is_file():
            raise UserError(f"{path}: its weights {weights.name} are not beside it; copy both files")
        try:
            self.model, metadata = openvino_file.load(path, threads)
        except RuntimeError as error:
            raise _damaged(path, "openvino", error) from None
        self.card = ExportCard.read(metadata, str(path))

    def __call__(self, images: NDArray[np.uint8]) -> Arrays:
        result = self.model(images)
        return result[0], result[1], result[2]


class TorchSession:
    """A file of `torch.export` in torch, with torch's threads; see `Session`. It pads the images for the file."""

    def __init__(self, path: Path, threads: int = 0):
        from detdistill.exporting import torch_file

        try:
            self.module, metadata = torch_file.load(path)
        except Exception as error:  # torch raises errors of many types for damaged files
            raise _damaged(path, "torch", error) from None
        self.card = ExportCard.read(metadata, str(path))

    def __call__(self, images: NDArray[np.uint8]) -> Arrays:
        height, width = images.shape[-2:]
        rows, columns = self.card.padded_size(height, width)
        canvas = np.pad(images, ((0, 0), (0, 0), (0, rows - height), (0, columns - width)))
        sizes = torch.tensor([[height, width]]).expand(len(images), 2)
        with torch.no_grad():
            boxes, scores, labels = self.module(torch.from_numpy(canvas), sizes.contiguous())
        return boxes.numpy(), scores.numpy(), labels.numpy()


OPENERS: dict[str, Callable[[Path, int], Session]] = {
    ".onnx": ONNXSession,
    ".xml": OpenVINOSession,
    ".pt2": TorchSession,
}
"""What loads a file, by its suffix."""


def _damaged(path: Path, runtime: str, error: Exception) -> UserError:
    reason = one_line(error, 160)
    return UserError(f"{path}: {runtime} can't load it ({reason}); export it again")
