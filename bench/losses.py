"""Measure the time and peak memory of each method's loss, forward and backward, on random outputs of COCO's size.

    python bench/losses.py [--method pkd fgd ...] [--form auto|dense|two_stage|both] [--quick] [--repeats 5]
                           [--threads 1] [--device cpu] [--json FILE]

No detector runs; the outputs are random. There are two images of 800 x 1088 pixels with 20 boxes each, neck maps of
256 channels at strides 8 to 128 (100 x 136 down to 7 x 9), and 80 classes. The dense pair has the output of GFL for
18134 cells. The two-stage pair has an RPN with three anchors per cell and 512 sampled RoIs per image.

If a method runs a part of a detector again, the part is replaced by a simple module with inputs and outputs of the true
size: `towers.resume` applies only the predictors, each a 1x1 convolution; `proposals.classify` pools the regions and
applies one linear layer. `bench/step.py` measures the true parts.

A method runs with its preset, on the dense pair if it can serve this pair, else on the two-stage pair.

Peak memory is the largest number of bytes allocated at one time during forward and backward, above the memory of the
outputs and of the method. It includes the gradients of the student's outputs. On a CPU, buffers that a library
allocates for itself (oneDNN) are not counted.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # hides the log lines of the profiler

import torch
from synthetic import RandomOutputs, Setting, make_info, random_boxes
from torch import Tensor

from detdistill.errors import UserError
from detdistill.methods import METHODS, Method
from detdistill.run.pairing import build_methods, resolve
from detdistill.types import Targets, TrainState

STATE = TrainState(step=500, steps=1000, ids=torch.tensor([139, 285]))
QUICK = Setting(height=200, width=272, channels=64, rois=64, embedding=256, repeats=2)


class Bench:
    """The outputs of a student and a teacher on one batch, and the functions that are measured on them.

    form: `dense` or `two_stage`. leaves: the student's output tensors that receive gradients.
    """

    def __init__(self, setting: Setting, form: str):
        device, generator = torch.device(setting.device), torch.Generator().manual_seed(0)
        self.setting, self.info = setting, make_info(setting, form)
        boxes = tuple(random_boxes(setting.boxes, setting, generator).to(device) for _ in range(2))
        labels = tuple(
            torch.randint(setting.classes, (setting.boxes,), generator=generator).to(device) for _ in range(2)
        )
        self.targets = Targets(boxes, labels)
        student = RandomOutputs(setting, self.info, self.targets, seed=1, requires_grad=True)
        teacher = RandomOutputs(setting, self.info, self.targets, seed=2, requires_grad=False)
        self.student_output = student.dense() if form == "dense" else student.two_stage()
        self.teacher_output = teacher.dense() if form == "dense" else teacher.two_stage()
        self.leaves = student.leaves

    def build(self, name: str) -> Method:
        """The method with its preset. Raises UserError if it cannot serve the pair."""
        torch.manual_seed(0)
        options = resolve({name: {}}, self.info, self.info)
        return build_methods(options, self.info, self.info)[0].to(self.setting.device).train()

    def forward(self, method: Method) -> Tensor:
        """The sum of the method's loss terms."""
        torch.manual_seed(0)
        terms = method(self.student_output, self.teacher_output, self.targets, STATE)
        return torch.stack([term.float() for term in terms.values()]).sum()

    def both(self, method: Method) -> None:
        """Forward and backward. `clear` removes the gradients."""
        self.forward(method).backward()

    def clear(self, method: Method) -> None:
        """Remove the gradients of the outputs and of the method."""
        for tensor in (*self.leaves, *method.parameters()):
            tensor.grad = None


def settle(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(function: Callable[[], object], device: torch.device) -> float:
    """The time of one call of the function.

    On one CPU thread this is the CPU time of the process, so other processes have little influence.
    """
    now = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    settle(device)
    start = now()
    result = function()
    settle(device)
    duration = (now() - start) * 1000
    del result  # freed only now, so that the release is not measured
    return duration


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """The largest number of bytes that the function has allocated at one time, without what was allocated before.

    On a GPU the value is from torch's allocator, on a CPU from the profiler's record of allocations and releases.
    """
    if device.type == "cuda":
        settle(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        settle(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in changes), initial=0))


def measure(bench: Bench, name: str, form: str) -> dict[str, Any]:
    """One row of the table. Instead of numbers it has `refused` if the method cannot serve the pair, or `failed`.

    `refused` and `failed` are the messages of the errors.
    """
    row: dict[str, Any] = {"method": name, "form": form}
    try:
        method, device = bench.build(name), torch.device(bench.setting.device)
        functions = {"forward": bench.forward, "both": bench.both}
        times: dict[str, list[float]] = {key: [] for key in functions}
        for number in range(bench.setting.repeats + 1):
            for key, function in functions.items():
                duration = milliseconds(lambda function=function: function(method), device)
                if number > 0:  # the first round is not counted
                    times[key].append(duration)
            bench.clear(method)
        row |= {f"{key}_ms": round(statistics.median(values), 2) for key, values in times.items()}
        row["peak_bytes"] = peak_bytes(lambda: bench.both(method), device)
        row["loss"] = bench.forward(method).item()
        bench.clear(method)
    except UserError as error:
        row["refused"] = str(error)
    except Exception as error:  # an error in one method must not hide the numbers of the other methods
        row["failed"] = f"{type(error).__name__}: {error}"
    return row


def measure_forms(name: str, benches: Mapping[str, Bench], all_forms: bool) -> list[dict[str, Any]]:
    """The rows of a method, one per form.

    all_forms: False returns one row, of the first form that the method serves, or of the last form if there is none.
    """
    rows = []
    for form, bench in benches.items():
        rows.append(measure(bench, name, form))
        if not all_forms and "refused" not in rows[-1]:
            break
    return rows if all_forms else rows[-1:]


def line(row: Mapping[str, Any]) -> str:
    """The row as a line of a markdown table."""
    if "forward_ms" not in row:
        return f"| {row['method']} | {row['form']} | {row.get('failed') or row.get('refused')} | | |"
    times = f"{row['forward_ms']:.1f} | {row['both_ms']:.1f}"
    return f"| {row['method']} | {row['form']} | {times} | {row['peak_bytes'] / 2**20:.1f} |"


def environment(setting: Any) -> dict[str, Any]:
    """The settings, the hardware and the versions that the numbers depend on."""
    device = torch.device(setting.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    versions = {"torch": torch.__version__, "python": platform.python_version(), "platform": platform.platform()}
    return {
        **asdict(setting),
        "hardware": name,
        "threads": torch.get_num_threads(),
        **versions,
        "command": " ".join(sys.argv),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=list(METHODS), help="default: all")
    parser.add_argument(
        "--form",
        choices=["auto", "dense", "two_stage", "both"],
        default="auto",
        help="auto (the default): two_stage only if the method cannot serve the dense pair; both: one row for each",
    )
    parser.add_argument("--quick", action="store_true", help="1/16 of the cells, 1/4 of the channels, two repeats")
    parser.add_argument("--repeats", type=int, help="rounds that are counted")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: cuda if there is one"
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    base = asdict(QUICK if options.quick else Setting())
    setting = Setting(**{**base, "device": options.device, "repeats": options.repeats or base["repeats"]})
    forms = ["dense", "two_stage"] if options.form in ("auto", "both") else [options.form]
    benches = {form: Bench(setting, form) for form in forms}
    rows = []
    print("| method | form | forward ms | forward + backward ms | peak MB |\n|---|---|---|---|---|")
    for name in options.method:
        for row in measure_forms(name, benches, all_forms=options.form == "both"):
            rows.append(row)
            print(line(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "environment": environment(setting)}, indent=2) + "\n")
    return 1 if any("failed" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
