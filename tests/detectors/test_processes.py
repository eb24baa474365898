"""Two processes of one image each learn what one process of both learns: their normalisers are averaged."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from detdistill.distributed import mean_over_processes
from detdistill.types import Batch, Targets
from tests.detectors.builders import DENSE, scene, shake, tiny

COUNTS = (5.0, 2.0)


def share(images: slice) -> tuple[Batch, Targets]:
    """Some of two images: three objects in the first, one in the second."""
    batch, targets = scene()
    few = (torch.tensor([[8.0, 4, 60, 46]]), torch.tensor([1]))
    boxes, labels = (targets.boxes[0], few[0]), (targets.labels[0], few[1])
    part = Batch(
        batch.images[images], batch.sizes[images], batch.originals[images], batch.ids[images], batch.names[images]
    )
    return part, Targets(boxes[images], labels[images])


def task_losses(images: slice) -> dict[str, dict[str, float]]:
    """Of every dense head, built alike in all processes."""
    batch, targets = share(images)
    found = {}
    for head in DENSE:
        detector = shake(tiny(head)).eval()
        with torch.no_grad():
            found[head] = {name: float(term) for name, term in detector.observe(batch, targets).losses.items()}
    return found


def one_of_two(rank: int, folder: str) -> None:
    """A process of the pair: what it finds goes to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    count = torch.tensor(COUNTS[rank])
    means = [float(mean_over_processes(value)) for value in (count, count / 100, count * 0)]
    torch.save(
        {"means": means, "count": float(count), "losses": task_losses(slice(rank, rank + 1))}, f"{folder}/{rank}.pt"
    )
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("pair")
    processes.spawn(one_of_two, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_a_normalizer_is_the_mean_over_processes_and_at_least_one(pair: list[dict]):
    for process, count in zip(pair, COUNTS, strict=True):
        assert process["means"] == [3.5, 1.0, 1.0]
        assert process["count"] == count  # the number itself is left as it was


@pytest.mark.parametrize("head", DENSE)
def test_two_processes_of_one_image_lose_what_one_of_two_loses(head: str, pair: list[dict]):
    whole, (first, second) = task_losses(slice(None))[head], (process["losses"][head] for process in pair)
    assert first.keys() == second.keys() == whole.keys()
    means = {name: (first[name] + second[name]) / 2 for name in whole}
    assert means == pytest.approx(whole, rel=1e-4)
    assert all(abs(first[name] - second[name]) > 0.01 * whole[name] for name in whole)  # the shares differ
