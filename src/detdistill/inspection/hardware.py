"""Checks of devices, cores, disk and caches. torch is imported inside the checks, so that a broken one is reported."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from detdistill.distributed import world_size
from detdistill.errors import plural
from detdistill.inspection.check import Check

GIB = 2**30
DISK = 5 * GIB  # free space below which it is a warning
SHARED = GIB  # the same for the shared memory of processes that read images


def check_devices() -> Iterator[Check]:
    """The GPUs, with memory and bfloat16; or why there is none."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
            half = "bf16" if torch.cuda.is_bf16_supported() else "no bf16, so use --precision fp16"
            text = f"cuda:{index} {properties.name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, {half}"
            remedy = "" if free > total / 2 else "another program uses this GPU; stop it or choose another --device"
            yield Check("device", "ok" if free > total / 2 else "warning", text, remedy)
    elif torch.backends.mps.is_available():
        yield Check("device", "ok", "mps (Apple GPU)")
    elif torch.version.cuda and (Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi")):
        text = f"there is an NVIDIA driver, but torch (built for CUDA {torch.version.cuda}) finds no GPU"
        yield Check(
            "device", "warning", text, "update the driver, or give the container access to the GPU (--gpus all)"
        )
    else:
        yield Check("device", "ok", "no GPU; the CPU is used")


def check_threads() -> Iterator[Check]:
    """Whether the threads of this run and of other programs fit on the cores."""
    import torch

    cores, threads, processes = usable_cores(), torch.get_num_threads(), world_size()
    variable = os.environ.get("OMP_NUM_THREADS")
    setting = f"OMP_NUM_THREADS={variable}" if variable else "OMP_NUM_THREADS is not set"
    text = f"{plural(cores, 'core')}, {plural(threads, 'thread')} per process ({setting})"
    fair = max(cores // processes, 1)
    if threads * processes > cores:
        text = f"{text}, but {plural(processes, 'process', 'processes')} here: the threads wait for each other"
        yield Check("threads", "warning", text, f"export OMP_NUM_THREADS={fair}")
        return
    busy = _load()
    if busy >= 0.5 and threads + busy > cores + 0.5:
        text = f"{text}; other programs keep {busy:.1f} cores busy, and two programs on one core slow each other down"
        left = max(int(cores - busy), 1)
        fewer = f", or export OMP_NUM_THREADS={left}" if left < threads else ""
        yield Check("threads", "warning", text, f"wait until they end{fewer}")
        return
    remedy = f"for two runs at once: export OMP_NUM_THREADS={max(cores // 2, 1)}" if threads > 1 else ""
    yield Check("threads", "ok", text, remedy)


def usable_cores() -> int:
    """The cores that this process may use: those it is bound to, and within the limit of its container."""
    from detdistill.engine.resources import cpu_count

    bound = cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(min(bound, int(int(quota) / int(period))), 1)
    except (OSError, ValueError):  # no such file, or its limit is `max`
        return bound


def _load() -> float:
    """The mean number of cores that were busy in the last minute; 0 if the system does not say."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return 0.0


def check_disk() -> Iterator[Check]:
    """Free space and write permission of the current folder, and the shared memory that image workers need."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    text = f"{free / GIB:.1f} GiB free in {here}"
    if not writable(here):
        yield Check("disk", "warning", f"{here} can't be written", "give --out with a folder that you may write")
    elif free < DISK:
        yield Check("disk", "warning", text, "a checkpoint of a large detector takes up to 1 GiB; free some space")
    else:
        yield Check("disk", "ok", text)
    shared = Path("/dev/shm")
    if shared.is_dir() and (size := shutil.disk_usage(shared).free) < SHARED:
        text = f"{size / GIB:.2f} GiB of shared memory, too little for processes that read images"
        yield Check("disk", "warning", text, "use --workers 0, or start the container with --shm-size 8g")


def check_caches() -> Iterator[Check]:
    """Whether downloaded weights can be stored."""
    import torch.hub
    from huggingface_hub.constants import HF_HUB_CACHE

    for folder, variable in ((Path(HF_HUB_CACHE), "HF_HOME"), (Path(torch.hub.get_dir()), "TORCH_HOME")):
        if writable(folder):
            yield Check("cache", "ok", str(folder))
        else:
            text = f"{folder} can't be written, so weights can't be downloaded"
            yield Check("cache", "warning", text, f"set {variable} to a folder that you may write")


def writable(folder: Path) -> bool:
    """True if a file can be made in the folder, or in the nearest folder above it that exists."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return True
    except OSError:
        return False
