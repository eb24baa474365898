"""Where a run computes: one device, or many processes started by torchrun."""

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from detdistill.distributed import world_size
from detdistill.errors import UserError
from detdistill.recipe import TrainConfig

_RESET = Path("/proc/self/clear_refs")  # writing 5 resets the peak; Linux alone has it


def find_device(name: str) -> torch.device:
    """The device called `auto`, `cpu`, `cuda`, `cuda:1` or `mps`. Raises UserError where it isn't there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: no such device; use auto, cpu, cuda, cuda:1 or mps") from None
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise UserError(f"--device {name}: this machine has none that torch can use; --device cpu works everywhere")
    return device


def forget_peak_memory(device: torch.device) -> None:
    """`peak_memory` counts from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access(_RESET, os.W_OK):
        _RESET.write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Bytes: the most that torch had allocated on a GPU, or that this process had resident on Linux; None where neither can be told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or not os.access(_RESET, os.W_OK):
        return None
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def open_accelerator(config: TrainConfig) -> Accelerator:
    """The accelerator of a run; its processes are those that torchrun started. Raises UserError on an impossible device or precision.

    accelerate keeps one state for the whole Python process, and refuses another precision or device later. A program that trains twice
    may well ask for one, so the state is let go first; the process group, if any, lives on in torch.distributed.
    """
    device = find_device(config.device)
    if config.precision == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs a GPU; on the CPU use --precision bf16 or fp32")
    if device.type == "cuda" and device.index is not None:
        if world_size() > 1:
            raise UserError(f"--device {device}: under torchrun every process has a GPU of its own; use --device cuda")
        torch.cuda.set_device(device)
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        mixed_precision="no" if config.precision == "fp32" else config.precision, cpu=device.type == "cpu"
    )
