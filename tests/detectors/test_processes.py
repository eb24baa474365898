"""Two processes with one image each have the losses of one process with both, because normalizers are averaged."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from detdistill.distributed import mean_over_processes
from detdistill.types import Batch, Targets
from tests.detectors.builders import DENSE, scene, shake, tiny

COUNTS = (5.0, 2.0)


def part_of_scene(images: slice) -> tuple[Batch, Targets]:
    """Some of two images. The first has three objects, the second has one."""
    batch, targets = scene()
    boxes = (targets.boxes[0], torch.tensor([[8.0, 4, 60, 46]]))
    labels = (targets.labels[0], torch.tensor([1]))
    part = Batch(
        batch.images[images], batch.sizes[images], batch.originals[images], batch.ids[images], batch.names[images]
    )
    return part, Targets(boxes[images], labels[images])


def task_losses(images: slice) -> dict[str, dict[str, float]]:
    """The task losses of every dense detector on some of the images. The detectors are equal in all processes."""
    batch, targets = part_of_scene(images)
    losses = {}
    for head in DENSE:
        detector = shake(tiny(head)).eval()
        with torch.no_grad():
            losses[head] = {name: float(term) for name, term in detector.observe(batch, targets).losses.items()}
    return losses


def run_process(rank: int, folder: str) -> None:
    """One of two processes. It writes its results to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    count = torch.tensor(COUNTS[rank])
    means = [float(mean_over_processes(value)) for value in (count, count / 100, count * 0)]
    results = {"means": means, "count": float(count), "losses": task_losses(slice(rank, rank + 1))}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The results of both processes."""
    folder: Path = tmp_path_factory.mktemp("processes")
    processes.spawn(run_process, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_a_normalizer_is_the_mean_over_processes_and_at_least_one(results: list[dict]):
    for process, count in zip(results, COUNTS, strict=True):
        assert process["means"] == [3.5, 1.0, 1.0]
        assert process["count"] == count  # the input is not changed


@pytest.mark.parametrize("head", DENSE)
def test_the_mean_of_two_processes_equals_one_process_with_both_images(head: str, results: list[dict]):
    whole = task_losses(slice(None))[head]
    first, second = results[0]["losses"][head], results[1]["losses"][head]
    assert first.keys() == second.keys() == whole.keys()
    means = {name: (first[name] + second[name]) / 2 for name in whole}
    assert means == pytest.approx(whole, rel=1e-4)
    assert all(abs(first[name] - second[name]) > 0.01 * whole[name] for name in whole)  # the images differ
