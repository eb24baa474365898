"""Devices and precisions that a machine does not have, and the measurement of memory."""

import os

import pytest
import torch

from detdistill.engine.device import find_device, open_accelerator, peak_memory, reset_peak_memory
from detdistill.errors import UserError

from .fakes import train_config


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta"])
def test_an_impossible_device_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"--device {name}: "):
        find_device(name)


def test_fp16_on_the_cpu_is_refused() -> None:
    with pytest.raises(UserError, match="--precision fp16 needs a GPU"):
        open_accelerator(train_config(precision="fp16"))


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux can reset the peak of resident memory"
)
def test_peak_memory_counts_from_the_last_reset():
    cpu = torch.device("cpu")
    reset_peak_memory(cpu)
    before = peak_memory(cpu)
    torch.ones(2**25)  # 128 MiB, freed at once
    after = peak_memory(cpu)
    assert after - before > 100 * 2**20
    reset_peak_memory(cpu)
    assert peak_memory(cpu) < after - 100 * 2**20
