"""cost: counts by hand, and latency with a simulated clock."""

import time

import pytest
import torch
from torch import nn

from detdistill.evaluation import cost
from detdistill.types import Batch, Detections

from .fake import FakeDetector

EMPTY = (Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)),)


def test_counts_worked_by_hand() -> None:
    # A 3 x 3 convolution from 3 to 8 channels on 20 x 40 pixels padded to 32 x 64: 32 * 64 * 8 outputs with 27
    # multiplications and additions each. Parameters: 8 * 27 weights and 8 biases of the convolution, 8 weights and 8
    # biases of the norm.
    detector = FakeDetector({})
    counted = cost(detector, (20, 40), "cpu", runs=2)
    assert list(counted) == ["params", "flops", "latency_ms"]
    assert counted["flops"] == 2 * 32 * 64 * 8 * 27
    assert counted["params"] == 8 * 27 + 8 + 8 + 8
    assert type(counted["flops"]) is int
    assert set(detector.calls) == {(False, False, (1, 3, 32, 64))}
    assert detector.training
    assert not detector.frozen.training


class Separable(FakeDetector):
    """A detector with a depthwise 3x3 convolution of stride 2 and a pointwise convolution on 8 channels."""

    def __init__(self) -> None:
        super().__init__({})
        self.depthwise = nn.Conv2d(8, 8, 3, 2, 1, groups=8)
        self.pointwise = nn.Conv2d(8, 12, 1)

    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        self.pointwise(self.depthwise(torch.ones(1, 8, 10, 14)))
        return EMPTY


def test_a_channel_of_a_depthwise_convolution_reads_one_channel() -> None:
    # 5 x 7 cells. Depthwise: 8 outputs with 9 multiplications and additions each. Pointwise: 12 outputs with 8 each.
    assert cost(Separable(), (32, 32), "cpu", runs=1)["flops"] == 2 * 5 * 7 * (8 * 9 + 12 * 8)


class Attending(FakeDetector):
    """A detector with one of torch's transformer layers, whose inference path is one fused operation."""

    def __init__(self) -> None:
        super().__init__({})
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        self.layer(torch.ones(1, 10, 16))
        return EMPTY


def test_fused_attention_is_counted() -> None:
    # 10 tokens of width 16: query, key, value 16 * 48, output 16 * 16, two linear layers 16 * 32 each. Attention scores
    # and their product with the values: 10 * 10 * 16 each.
    before = torch.backends.mha.get_fastpath_enabled()
    flops = cost(Attending(), (32, 32), "cpu", runs=1)["flops"]
    assert flops == 2 * (10 * (16 * 48 + 16 * 16 + 2 * 16 * 32) + 2 * 10 * 10 * 16)
    assert torch.backends.mha.get_fastpath_enabled() is before


class Timed(FakeDetector):
    """A detector with a simulated clock: a call takes 20 ms, and the sixth call 900 ms.

    On the CPU the time passes during the call. On another device it passes when the caller waits for the device.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__({})
        self.now, self.pending = 0.0, 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: self.finish())

    def finish(self) -> None:
        """Let the pending time pass."""
        self.now, self.pending = self.now + self.pending, 0.0

    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        self.calls.append((self.training, False, tuple(batch.images.shape)))
        self.pending += 0.9 if len(self.calls) == 6 else 0.02
        if batch.images.device.type == "cpu":
            self.finish()
        return EMPTY


def test_latency_is_the_median_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cost(Timed(monkeypatch), (32, 32), "cpu", runs=7)["latency_ms"] == pytest.approx(20)


def test_latency_waits_for_the_device_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    # The timed run ends when its own work is done, and begins when the work of the warm-up is done.
    assert cost(Timed(monkeypatch), (32, 32), "meta", runs=1)["latency_ms"] == pytest.approx(20)


@pytest.mark.parametrize(("seconds", "timed"), [(0.0, 5), (2.0, 30), (1.39, 26)])
def test_slow_detectors_are_timed_less_often(monkeypatch: pytest.MonkeyPatch, seconds: float, timed: int) -> None:
    # One run takes 0.9 s: 25 runs end at 24 * 0.02 + 0.9 = 1.38 s, so another one begins, and 26 runs end at 1.40 s.
    detector = Timed(monkeypatch)
    cost(detector, (32, 32), "cpu", runs=30, seconds=seconds)
    assert len(detector.calls) == 1 + 3 + timed  # operation count, warm-up, timing


def test_the_image_is_always_the_same_noise() -> None:
    seen: list[Batch] = []

    class Watching(FakeDetector):
        def detect(self, batch: Batch) -> tuple[Detections, ...]:
            seen.append(batch)
            return EMPTY

    for _ in range(2):
        cost(Watching({}), (20, 40), "cpu", runs=1)
    assert torch.equal(seen[0].images, seen[-1].images)
    assert seen[0].sizes.tolist() == [[20, 40]]
    assert seen[0].images[:, :, :20, :40].float().std() > 50
    assert seen[0].images[:, :, 20:].sum() == 0
    assert seen[0].images[:, :, :, 40:].sum() == 0
