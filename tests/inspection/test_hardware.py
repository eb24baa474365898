"""Devices, threads, disk and caches of a machine that the test describes."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from detdistill.inspection import hardware
from detdistill.inspection.check import Check
from detdistill.inspection.hardware import (
    GIB,
    check_caches,
    check_devices,
    check_disk,
    check_threads,
    usable_cores,
    writable,
)


def threads(monkeypatch: pytest.MonkeyPatch, cores: int, count: int, processes: int = 1, busy: float = 0.0) -> Check:
    """The check of threads on a machine with these cores, threads per process, processes and busy cores."""
    monkeypatch.setattr(hardware, "usable_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    monkeypatch.setattr(hardware, "world_size", lambda: processes)
    monkeypatch.setattr(hardware, "_load", lambda: busy)
    (check,) = check_threads()
    return check


def test_threads_that_fit_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    check = threads(monkeypatch, cores=4, count=4)
    assert (check.state, check.text) == ("ok", "4 cores, 4 threads per process (OMP_NUM_THREADS is not set)")
    assert check.remedy == "for two runs at once: export OMP_NUM_THREADS=2"


@pytest.mark.parametrize(("cores", "count", "processes", "fair"), [(2, 2, 2, 1), (4, 16, 1, 4), (2, 1, 4, 1)])
def test_more_threads_than_cores_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, cores: int, count: int, processes: int, fair: int
) -> None:
    check = threads(monkeypatch, cores, count, processes)
    assert (check.state, check.remedy) == ("warning", f"export OMP_NUM_THREADS={fair}")


def test_busy_cores_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    check = threads(monkeypatch, cores=4, count=4, busy=2.0)
    assert check.state == "warning" and "2.0 cores busy" in check.text
    assert check.remedy.endswith("export OMP_NUM_THREADS=2")
    assert threads(monkeypatch, cores=4, count=2, busy=2.0).state == "ok"
    assert threads(monkeypatch, cores=4, count=4, busy=0.2).state == "ok"


@pytest.mark.parametrize(("limit", "cores"), [("200000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("", 8)])
def test_the_limit_of_a_container_counts(monkeypatch: pytest.MonkeyPatch, limit: str, cores: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(Path, "read_text", lambda path: limit)
    assert usable_cores() == cores


def test_a_machine_without_a_gpu_uses_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    (check,) = check_devices()
    assert check.state == "ok" and "CPU" in check.text
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    (check,) = check_devices()
    assert check.text.startswith("mps")


def test_a_driver_without_a_gpu_for_torch_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    (check,) = check_devices()
    assert check.state == "warning" and "CUDA 13.0" in check.text and "driver" in check.remedy


@pytest.mark.parametrize(("free", "state"), [(20, "ok"), (8, "warning")])
def test_gpus_are_named_with_their_memory(monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(name="Card"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (free * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    (check,) = check_devices()
    assert (check.state, check.text) == (state, f"cuda:0 Card, {free}.0 of 24.0 GiB free, bf16")


def disk(monkeypatch: pytest.MonkeyPatch, free: float, shared: float = 8) -> list[Check]:
    """The check of the disk with these GiB free in the current folder and in the shared memory."""
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: SimpleNamespace(free=(shared if str(path) == "/dev/shm" else free) * GIB)
    )
    return list(check_disk())


def test_little_disk_space_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert [check.state for check in disk(monkeypatch, 50)] == ["ok"]
    (check,) = disk(monkeypatch, 2)
    assert check.state == "warning" and check.text == f"2.0 GiB free in {tmp_path}"


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="this system has no shared memory folder")
def test_little_shared_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    check = disk(monkeypatch, 50, shared=0.0625)[-1]
    assert check.state == "warning" and "0.06 GiB of shared memory" in check.text and "--workers 0" in check.remedy


def test_a_folder_is_writable_if_a_file_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert writable(tmp_path / "not" / "made" / "yet")
    assert list(tmp_path.iterdir()) == []

    def refuse(**keywords: object) -> None:
        raise PermissionError

    monkeypatch.setattr(hardware.tempfile, "TemporaryFile", refuse)
    assert not writable(tmp_path)


def test_a_cache_that_cant_be_written_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {check.name for check in check_caches()} == {"cache"}
    monkeypatch.setattr(hardware, "writable", lambda folder: False)
    checks = list(check_caches())
    assert [check.state for check in checks] == ["warning", "warning"]
    assert ["HF_HOME" in checks[0].remedy, "TORCH_HOME" in checks[1].remedy] == [True, True]
