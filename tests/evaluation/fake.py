"""A detector that has made up its mind."""

import torch
from torch import Tensor, nn

from detdistill.types import Batch, Detections, DetectorInfo, DetectorOutput, Need, Targets

Rows = list[tuple[list[float], float, int]]  # box, score, label


class FakeDetector(nn.Module):
    """Constant detections by image id, a norm that is frozen, and a convolution whose cost is known."""

    def __init__(self, found: dict[int, Rows]) -> None:
        super().__init__()
        self.info = DetectorInfo("fake", ("ship", "cat"), (8,), {"neck": 8}, "sigmoid")
        self.found = found
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.frozen = nn.BatchNorm2d(8).eval()
        self.cache: Tensor | None = None
        self.calls: list[tuple[bool, bool, tuple[int, ...]]] = []  # training, gradient, shape

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        return DetectorOutput({})

    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        features = self.convolution(batch.images.float())
        self.cache = torch.ones(1, device=features.device) * 2  # as detectors keep their anchors
        self.calls.append((self.training, features.requires_grad, tuple(batch.images.shape)))
        return tuple(self._detections(self.found.get(image, [])) for image in batch.ids.tolist())

    def _detections(self, rows: Rows) -> Detections:
        boxes = torch.tensor([box for box, _, _ in rows]).reshape(-1, 4)
        return Detections(
            boxes, torch.tensor([score for _, score, _ in rows]), torch.tensor([label for _, _, label in rows]).long()
        )


def shown(*ids: int) -> tuple[Batch, Targets]:
    """A batch of images of 100 x 200, shrunk to 32 x 64."""
    count = len(ids)
    sizes, originals = torch.tensor([[32, 64]] * count), torch.tensor([[100, 200]] * count)
    names = tuple(f"{image}.png" for image in ids)
    batch = Batch(torch.zeros(count, 3, 32, 64, dtype=torch.uint8), sizes, originals, torch.tensor(ids), names)
    return batch, Targets((torch.zeros(0, 4),) * count, (torch.zeros(0, dtype=torch.int64),) * count)
