"""A detector that looks broken: its weights, its classes, and what it detects."""

import numpy as np
import pytest
import torch
from torch import nn

from detdistill.data import open_data
from detdistill.detectors.statistics import IMAGENET, PixelStatistics
from detdistill.inspection.teacher import (
    OTHERS,
    Sample,
    class_findings,
    look,
    sample_findings,
    weight_findings,
)
from detdistill.recipe import DataConfig
from detdistill.types import Batch, Detections, DetectorInfo, DetectorOutput, Predictions
from tests.detectors.builders import tiny

CONFIG = DataConfig(path="shapes:8", image_size=(128, 160))
SPLIT = open_data(CONFIG).split("val")
TRUTH = {record.id: record for record in SPLIT.records}
HALF = OTHERS["0.5 and 0.5"]


class Knowing(nn.Module):
    """Detects exactly the objects of SPLIT, if the pixels that reach it are normalized with `right`.

    own: the statistics that it normalizes with. classes: its names, in the order of the data's classes.
    """

    def __init__(self, classes: tuple[str, ...], own: PixelStatistics, right: PixelStatistics) -> None:
        super().__init__()
        self.info = DetectorInfo("knowing", classes, (8,), {"neck": 8}, "sigmoid")
        self.own, self.right = own, right
        self.weight = nn.Parameter(torch.zeros(1))

    def _sees(self, batch: Batch) -> bool:
        pixels = batch.images.float() / 255 if batch.images.dtype == torch.uint8 else batch.images
        image = torch.from_numpy(np.array(TRUTH[batch.ids[0].item()].image())).permute(2, 0, 1) / 255
        mean, std, right_mean, right_std = (torch.tensor(each).view(3, 1, 1) for each in (*self.own, *self.right))
        expected = (image - right_mean) / right_std
        return torch.allclose((pixels[0] - mean) / std, expected, atol=1e-3)

    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        sees, found = self._sees(batch), []
        for image in batch.ids.tolist():
            record = TRUTH[image]
            count = len(record.labels) if sees else 0
            found.append(Detections(record.boxes[:count], torch.full((count,), 0.9), record.labels[:count]))
        return tuple(found)

    def observe(self, batch: Batch, targets: object = None, need: object = None) -> DetectorOutput:
        logits = torch.linspace(-4, 4, 10).view(1, 10, 1).expand(len(batch), -1, len(self.info.classes))
        valid = torch.ones(len(batch), 10, dtype=torch.bool)
        return DetectorOutput({}, (Predictions(logits, "sigmoid", torch.zeros(len(batch), 10, 4), valid),))


def seen(classes: tuple[str, ...], own: PixelStatistics = IMAGENET, right: PixelStatistics = IMAGENET) -> Sample | None:
    return look(Knowing(classes, own, right), SPLIT, CONFIG, 4, own)


def kinds(sample: Sample, floor: float = 5.0) -> list[str]:
    return [finding.kind for finding in sample_findings(sample, floor)]


def test_a_good_detector_has_no_findings() -> None:
    sample = seen(SPLIT.classes)
    assert (sample.AP, sample.AP50, sample.agnostic) == (100.0, 100.0, 100.0)
    assert (sample.images, sample.empty) == (2, 0)
    assert sample.spread == pytest.approx(torch.tensor(4.0).sigmoid().item() - 0.5, abs=0.12)
    assert sample.others == {"own": 100.0, "0.5 and 0.5": 0.0, "0 and 1": 0.0}
    assert kinds(sample) == []


def test_other_pixel_statistics_that_are_better_are_found() -> None:
    sample = seen(SPLIT.classes, own=IMAGENET, right=HALF)
    assert sample.others["0.5 and 0.5"] == 100.0 and sample.AP == 0.0
    found = {finding.kind: finding for finding in sample_findings(sample, 5.0)}
    assert found.keys() == {"empty", "weak", "normalization"}
    assert "--teacher.model.mean 0.5,0.5,0.5" in found["normalization"].remedy


def test_the_wrong_order_of_classes_is_found() -> None:
    sample = seen((*SPLIT.classes[1:], SPLIT.classes[0]))
    assert sample.agnostic == 100.0 and sample.AP50 < 50
    assert "class-order" in kinds(sample)


def test_only_the_shared_classes_count() -> None:
    assert seen(("whale", "shark")) is None
    sample = seen((*SPLIT.classes[:3], "whale", "shark", "squid"))
    assert sample.AP == 100.0


def test_equal_scores_and_a_low_precision_are_found() -> None:
    sample = Sample(0.4, 1.0, 1.0, 32, 3, 30, 0.01, {})
    assert kinds(sample) == ["flat-scores", "weak"]
    assert kinds(Sample(4.0, 9.0, 9.0, 32, 16, 30, 0.5, {}), floor=3.0) == ["empty"]
    assert kinds(Sample(None, None, None, 32, 0, 0, None, {})) == []


def test_weights_that_are_not_finite_or_not_trained() -> None:
    fresh = tiny("gfl")
    assert [finding.kind for finding in weight_findings(fresh)] == ["untrained"]
    name, buffer = next((name, buffer) for name, buffer in fresh.named_buffers() if name.endswith("running_mean"))
    buffer += 0.1
    assert weight_findings(fresh) == []
    buffer[0] = torch.inf
    [finding] = weight_findings(fresh)
    assert (finding.kind, finding.examples) == ("not-finite", (name,))


def test_classes_that_the_detector_does_not_know() -> None:
    assert class_findings(("b", "a", "c"), ("a", "b")) == []
    [some] = class_findings(("a", "c"), ("a", "b"))
    assert (some.level, some.count, some.examples) == ("warning", 1, ("b",))
    [none] = class_findings(("c",), ("a", "b"))
    assert (none.level, none.count, none.examples) == ("problem", 2, ("a", "b"))
    assert class_findings((), ("a",)) == []  # a model of features
