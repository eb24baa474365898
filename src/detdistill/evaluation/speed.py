"""The cost of a detector: parameters, operations, latency."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detdistill.evaluation.evaluate import evaluating
from detdistill.types import Batch, Detector, padded_size

RUNS, FEWEST, SECONDS = 30, 5, 5.0  # runs for the latency, and the time after which fewer are done
WARM_UPS = 3  # runs before them


def cost(
    detector: Detector,
    image_size: tuple[int, int],
    device: torch.device | str,
    *,
    runs: int = RUNS,
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """The cost of `detect` for one image: {"params": int, "flops": int, "latency_ms": float}.

    detector: must be on `device` already. image_size: (height, width).
    params: number of all parameters, including frozen ones.
    flops: of convolutions, matrix products and attention. A multiplication and an addition are two operations.
        Element-wise operations, suppression and deformable sampling are not counted.
    latency_ms: median of `runs` runs after a warm-up. If they take longer than `seconds`, fewer runs are done, but at
        least 5.
    """
    batch = noise_batch(image_size).to(device)
    with evaluating(detector), torch.no_grad():
        flops = count_operations(lambda: detector.detect(batch))
        latency = _latency(detector, batch, runs, seconds)
    params = sum(parameter.numel() for parameter in cast(nn.Module, detector).parameters())
    return {"params": params, "flops": flops, "latency_ms": latency}


def timed_runs(latency: float) -> int:
    """How often `cost` runs a detector that takes `latency` seconds."""
    return WARM_UPS + max(FEWEST, min(RUNS, int(SECONDS / max(latency, 1e-6))))


def operations(detector: Detector, image_size: tuple[int, int]) -> int:
    """The operations of `detect` for one image, as `cost` counts them. The detector must be on the CPU."""
    with evaluating(detector), torch.no_grad():
        return count_operations(lambda: detector.detect(noise_batch(image_size)))


def count_operations(run: Callable[[], Any]) -> int:
    """The operations of a call, as `cost` counts them. The tensors in it can be on torch's meta device."""
    with _unfused_attention(), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def noise_batch(image_size: tuple[int, int]) -> Batch:
    """One image of noise, always the same, padded like the images of a data set."""
    height, width = image_size
    images = torch.zeros(1, 3, *padded_size(image_size), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    images[:, :, :height, :width] = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)
    size: Tensor = torch.tensor([[height, width]])
    return Batch(images, size, size.clone(), torch.zeros(1, dtype=torch.int64), ("noise",))


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Run torch's transformer layers and attention as separate operations.

    The fused versions count as 0 operations (fused attention only before torch 2.15).
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _latency(detector: Detector, batch: Batch, runs: int, seconds: float) -> float:
    """Median time of `detect` in milliseconds.

    Three runs come first and are not timed, because they choose kernels and fill caches.
    """
    for _ in range(WARM_UPS):
        detector.detect(batch)
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < runs and (len(times) < FEWEST or time.perf_counter() - start < seconds):
        _synchronize(batch.images.device)
        begin = time.perf_counter()
        detector.detect(batch)
        _synchronize(batch.images.device)
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times)


def _synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work. The CPU works synchronously."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
