"""A detector with constant detections, and batches for it."""

import torch
from torch import Tensor, nn

from detdistill.types import Batch, Detections, DetectorInfo, DetectorOutput, Need, Targets

Rows = list[tuple[list[float], float, int]]  # box, score, label


class FakeDetector(nn.Module):
    """Gives constant detections by image id. It has a frozen norm, and a convolution whose cost is known."""

    def __init__(self, rows: dict[int, Rows]) -> None:
        super().__init__()
        self.info = DetectorInfo("fake", ("ship", "cat"), (8,), {"neck": 8}, "sigmoid")
        self.rows = rows
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.frozen = nn.BatchNorm2d(8).eval()
        self.cache: Tensor | None = None
        self.calls: list[tuple[bool, bool, tuple[int, ...]]] = []  # training mode, requires gradient, image shape

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        return DetectorOutput({})

    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        features = self.convolution(batch.images.float())
        self.cache = torch.ones(1, device=features.device) * 2  # as detectors cache their anchors
        self.calls.append((self.training, features.requires_grad, tuple(batch.images.shape)))
        return tuple(self._detections(self.rows.get(image, [])) for image in batch.ids.tolist())

    def _detections(self, rows: Rows) -> Detections:
        boxes = torch.tensor([box for box, _, _ in rows]).reshape(-1, 4)
        scores = torch.tensor([score for _, score, _ in rows])
        labels = torch.tensor([label for _, _, label in rows]).long()
        return Detections(boxes, scores, labels)


def batch_of(*ids: int) -> tuple[Batch, Targets]:
    """A batch of images with these ids, whose files of 100 x 200 are resized to 32 x 64, and empty targets."""
    count = len(ids)
    sizes, originals = torch.tensor([[32, 64]] * count), torch.tensor([[100, 200]] * count)
    names = tuple(f"{image}.png" for image in ids)
    batch = Batch(torch.zeros(count, 3, 32, 64, dtype=torch.uint8), sizes, originals, torch.tensor(ids), names)
    return batch, Targets((torch.zeros(0, 4),) * count, (torch.zeros(0, dtype=torch.int64),) * count)
