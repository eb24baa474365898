"""The device of a run, or the devices of several processes started by torchrun."""

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from detdistill.distributed import world_size
from detdistill.errors import UserError
from detdistill.recipe import TrainConfig

_RESET = Path("/proc/self/clear_refs")  # Linux resets the peak of resident memory when 5 is written here


def find_device(name: str) -> torch.device:
    """The device called `auto`, `cpu`, `cuda`, `cuda:1` or `mps`. Raises UserError if this machine does not have it."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: unknown device; use auto, cpu, cuda, cuda:1 or mps") from None
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(device.type, False):
        raise UserError(f"--device {name}: torch finds no such device on this machine; --device cpu works everywhere")
    return device


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement for `peak_memory`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access(_RESET, os.W_OK):
        _RESET.write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Peak memory in bytes: allocated by torch on a GPU, or resident in this process on Linux; None if it can't be
    measured.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or not os.access(_RESET, os.W_OK):
        return None
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def open_accelerator(config: TrainConfig) -> Accelerator:
    """The accelerator of a run, over the processes that torchrun started.

    accelerate keeps one state per Python process and refuses another precision or device later. A program may train
    twice with different ones, so the state is reset first; an existing process group stays. Raises UserError for an
    impossible device or precision.
    """
    device = find_device(config.device)
    if config.precision == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs a GPU; on the CPU use --precision bf16 or fp32")
    if device.type == "cuda" and device.index is not None:
        if world_size() > 1:
            raise UserError(f"--device {device}: under torchrun every process uses its own GPU; use --device cuda")
        torch.cuda.set_device(device)
    AcceleratorState._reset_state(reset_partial_state=True)
    precision = "no" if config.precision == "fp32" else config.precision
    return Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
