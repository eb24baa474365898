"""What a detector costs: parameters, operations, time."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detdistill.evaluation.evaluate import evaluating
from detdistill.types import Batch, Detector


def cost(
    detector: Detector, image_size: tuple[int, int], device: torch.device | str, *, runs: int = 30, seconds: float = 5.0
) -> dict[str, Any]:
    """{"params": int, "flops": int, "latency_ms": float} of `detect` on one image of (height, width), already on `device`.

    params: all of them, frozen ones too. flops: of convolutions, matrix products and attention, a multiplication and an addition being two;
    element-wise operations, suppression and deformable sampling are not counted. latency_ms: median of `runs` runs
    after warm-up, of fewer (but at least 5) where they take longer than `seconds`.
    """
    batch = _noise(image_size).to(device)
    with evaluating(detector), torch.no_grad():
        with _whole_attention(), FlopCounterMode(display=False) as counter:
            detector.detect(batch)
        latency = _latency(detector, batch, runs, seconds)
    params = sum(parameter.numel() for parameter in cast(nn.Module, detector).parameters())
    return {"params": params, "flops": int(counter.get_total_flops()), "latency_ms": latency}


def _noise(image_size: tuple[int, int]) -> Batch:
    """One image of noise, the same each time, padded as the data set's images are."""
    height, width = image_size
    images = torch.zeros(1, 3, -(-height // 32) * 32, -(-width // 32) * 32, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    images[:, :, :height, :width] = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)
    size: Tensor = torch.tensor([[height, width]])
    return Batch(images, size, size.clone(), torch.zeros(1, dtype=torch.int64), ("noise",))


@contextmanager
def _whole_attention() -> Iterator[None]:
    """torch's transformer layers and attention as separate operations: their fused paths count as 0 operations (the latter before torch 2.15)."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _latency(detector: Detector, batch: Batch, runs: int, seconds: float) -> float:
    """Milliseconds. The first runs are left out: they choose kernels and fill caches."""
    for _ in range(3):
        detector.detect(batch)
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < runs and (len(times) < 5 or time.perf_counter() - start < seconds):
        _wait(batch.images.device)
        begin = time.perf_counter()
        detector.detect(batch)
        _wait(batch.images.device)
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    """Until the device has done what was asked of it; the CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
