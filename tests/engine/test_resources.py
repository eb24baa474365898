"""Workers and batch sizes that suit a machine."""

import multiprocessing

import pytest
import torch

from detdistill.engine import resources
from detdistill.engine.resources import largest_batch, worker_count
from detdistill.recipe import TrainConfig


@pytest.mark.parametrize(
    ("device", "cpus", "processes", "start", "expected"),
    [
        ("cpu", 2, 1, "fork", 0),
        ("cpu", 4, 1, "fork", 1),
        ("cpu", 64, 1, "fork", 1),
        ("cuda", 2, 1, "fork", 2),
        ("cuda", 64, 1, "fork", 8),
        ("cuda", 16, 4, "forkserver", 4),
        ("cuda", 2, 4, "fork", 1),
        ("cuda", 64, 1, "spawn", 0),
    ],
)
def test_the_number_of_workers_follows_the_machine(
    monkeypatch: pytest.MonkeyPatch, device: str, cpus: int, processes: int, start: str, expected: int
) -> None:
    monkeypatch.setattr(resources, "cpu_count", lambda: cpus)
    monkeypatch.setattr(resources, "find_device", lambda name: torch.device(device))
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: [start])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert worker_count(TrainConfig()) == expected
    assert worker_count(TrainConfig(workers=3)) == 3


def test_this_process_may_use_at_least_one_core() -> None:
    assert resources.cpu_count() >= 1


@pytest.mark.parametrize(
    ("fit", "most", "multiple", "expected"),
    [
        (5, 100, 1, 4),
        (6, 100, 1, 6),
        (7, 100, 1, 6),
        (23, 100, 1, 16),
        (24, 100, 1, 24),
        (1000, 50, 1, 48),
        (1000, 5, 1, 4),
        (17, 100, 4, 16),
        (12, 100, 4, 12),
        (0, 100, 1, None),
        (1000, 3, 4, None),
    ],
)
def test_the_largest_batch_that_fits_is_found(fit: int, most: int, multiple: int, expected: int | None) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= fit

    assert largest_batch(fits, most, multiple) == expected
    assert sum(size > fit for size in tried) <= 1  # no second try that runs out of memory
    assert all(size <= most and size % multiple == 0 for size in tried)
