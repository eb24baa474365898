"""Rank, world size and exchange between processes. Two gloo processes compute what one process with all rows does."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detdistill import distributed


def test_a_single_process_is_the_main_one_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (distributed.rank(), distributed.local_rank(), distributed.world_size()) == (0, 0, 1)
    assert distributed.is_main() and not distributed.is_initialized()
    values = torch.tensor([3.0, 4.0])
    total, processes = distributed.sum_over_processes(values)
    assert total is values and processes == 1
    rows, first = distributed.gather_rows(values)
    assert torch.equal(rows, values) and first == 0
    distributed.barrier()  # returns at once


def test_torchrun_names_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert (distributed.rank(), distributed.local_rank(), distributed.world_size()) == (5, 1, 8)
    assert not distributed.is_main()


@pytest.mark.parametrize(("count", "mean"), [(0.0, 1.0), (0.25, 1.0), (7.0, 7.0)])
def test_a_normalizer_is_at_least_its_floor(count: float, mean: float) -> None:
    normalizer = torch.tensor(count, requires_grad=True)
    result = distributed.mean_over_processes(normalizer)
    assert result.item() == mean and not result.requires_grad
    assert distributed.mean_over_processes(torch.tensor(0.0), floor=0.0).item() == 0.0


def exchange(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    total, processes = distributed.sum_over_processes(torch.tensor([1.0 + rank]))
    assert (total.item(), processes) == (3.0, 2)
    assert distributed.mean_over_processes(torch.tensor(4.0 * rank)).item() == 2.0
    rows, first = distributed.gather_rows(torch.full((rank + 1, 2), float(rank)))  # 1 row and 2 rows
    assert rows.tolist() == [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]] and first == rank
    buffer = torch.tensor([10.0 + rank])
    distributed.broadcast_from_main(buffer)
    assert buffer.item() == 10.0
    distributed.barrier()
    dist.destroy_process_group()


def test_two_processes_exchange_what_they_hold(tmp_path: Path) -> None:
    mp.spawn(exchange, args=(str(tmp_path),), nprocs=2)
