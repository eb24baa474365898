"""What a run takes of its machine: worker processes for the images, and images per step."""

import multiprocessing
import os
from collections.abc import Callable

from detdistill.engine.device import find_device
from detdistill.recipe import TrainConfig

WORKERS = 8  # most worker processes that are chosen for a GPU
CORES_TO_SPARE = 4  # from this number on, a training that computes on the CPU gives one core to a worker


def cpu_count() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(config: TrainConfig) -> int:
    """`train.workers`, or for `auto` what suits this machine. It never changes a pixel.

    On a GPU, the cores are shared among the processes of this machine, and each gets at most 8 workers. A training that
    computes on the CPU needs its cores itself, and gets one worker from four cores on. Where Python starts processes by
    importing the main program again (macOS, Windows), a program without the usual guard would start itself again, so
    there `auto` is 0.
    """
    if config.workers != "auto":
        return config.workers
    if multiprocessing.get_all_start_methods()[0] == "spawn":
        return 0
    if find_device(config.device).type == "cpu":
        return int(cpu_count() >= CORES_TO_SPARE)
    return max(1, min(WORKERS, cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def largest_batch(fits: Callable[[int], bool], most: int, multiple: int = 1) -> int | None:
    """The largest batch size that fits among `multiple` times 1, 2, 3, 4, 6, 8, 12, 16, 24, ..., up to `most`.

    fits: says whether a step with this many images fits into memory. It is not called for a size above one that does
    not fit. None: not even the smallest one fits, or it is above `most`.
    """
    found, size, following = None, multiple, 2 * multiple
    while size <= most and fits(size):
        found = size
        # 1, 2, 3, 4, 6, 8, 12: powers of two and one and a half times them
        size, following = following, 2 * size if size > multiple else 3 * multiple
    return found
