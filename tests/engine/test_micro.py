"""Micro-batches by themselves: how a batch is split, and what they exchange."""

import pytest
import torch

from detdistill.distributed import gather_rows, mean_over_processes, sum_over_processes
from detdistill.engine.micro import MicroBatches, check_accumulate, split
from detdistill.errors import UserError

from .fakes import FakeLoader


def test_a_batch_is_split_in_order_and_keeps_its_padding() -> None:
    batch, targets = FakeLoader(batch_size=6).batch(0, 0)
    parts = split(batch, targets, 3)
    assert [part.names for part, _ in parts] == [batch.names[:2], batch.names[2:4], batch.names[4:]]
    assert torch.equal(torch.cat([part.images for part, _ in parts]), batch.images)
    assert torch.equal(torch.cat([part.ids for part, _ in parts]), batch.ids)
    assert torch.equal(torch.cat([part.sizes for part, _ in parts]), batch.sizes)
    assert [boxes for _, part in parts for boxes in part.boxes] == list(targets.boxes)
    assert [labels for _, part in parts for labels in part.labels] == list(targets.labels)
    assert split(batch, targets, 1) == [(batch, targets)]


def test_unequal_micro_batches_are_refused() -> None:
    batch, targets = FakeLoader(batch_size=6).batch(0, 0)
    message = (
        r"train\.accumulate is 4, but 6 images per step can't be shared equally by 4 micro-batches; .* multiple of 4"
    )
    with pytest.raises(UserError, match=message):
        split(batch, targets, 4)
    with pytest.raises(UserError, match=r"2 micro-batches on each of 2 processes; .* multiple of 4"):
        check_accumulate(6, 2, 2)
    check_accumulate(8, 2, 2)


def exchange(counts: list[float]) -> tuple[float, float, list[float], int]:
    """What one micro-batch gets for its count, with floor 1 and with a sum, and for its rows, as many as its count."""
    count = torch.tensor(counts)
    rows, begin = gather_rows(torch.arange(counts[0]))
    return mean_over_processes(count)[0].item(), sum_over_processes(count)[0][0].item(), rows.tolist(), begin


def test_a_micro_batch_gets_its_share_of_the_whole_batch_once_all_are_known() -> None:
    micro_batches = MicroBatches(3)
    for index, count in enumerate((2.0, 3.0)):
        with micro_batches.running(index):  # the third count is not known yet
            assert exchange([count]) == (count, count, list(range(int(count))), 0)
    everything = [0.0, 1.0, 0.0, 1.0, 2.0, 0.0]
    with micro_batches.running(2):
        assert exchange([1.0]) == (2.0, 6.0, everything, 5)  # (2 + 3 + 1) / 3
    with micro_batches.running(1):
        assert exchange([3.0]) == (2.0, 6.0, everything, 2)
    micro_batches.check()
    assert exchange([3.0]) == (3.0, 3.0, [0.0, 1.0, 2.0], 0)  # outside of a step nothing is exchanged


def test_the_floor_is_that_of_the_whole_batch() -> None:
    micro_batches = MicroBatches(4)
    for index in range(4):
        with micro_batches.running(index):
            result = mean_over_processes(torch.tensor(0.2))
    assert result.item() == pytest.approx(1 / 4)  # max(0.8, 1) / 4: the mean of four losses is that of the batch
    with micro_batches.running(0):
        assert mean_over_processes(torch.tensor(0.2), floor=0.0).item() == pytest.approx(0.2)


def test_a_value_of_an_earlier_run_stays() -> None:
    micro_batches = MicroBatches(2)
    for index, value in ((0, 1.0), (1, 2.0), (0, 100.0)):
        with micro_batches.running(index):
            total, _ = sum_over_processes(torch.tensor(value))
    assert total.item() == 3.0


def test_micro_batches_that_exchange_different_numbers_of_values_are_refused() -> None:
    micro_batches = MicroBatches(2)
    for index in range(2):
        with micro_batches.running(index):
            for _ in range(index + 1):
                sum_over_processes(torch.ones(()))
    with pytest.raises(RuntimeError, match="exchanged 1 and 2 values; a detector or method must call"):
        micro_batches.check()
