"""What each method's loss costs: time and peak memory, forward and backward, on outputs of COCO's size.

    python bench/losses.py [--method pkd fgd ...] [--form auto|dense|two_stage] [--quick] [--repeats 5] [--threads 1] [--device cpu] [--json FILE]

No detector runs. The outputs are drawn: two images of 800 x 1088 pixels with 20 boxes each, neck maps of 256 channels at strides 8 to 128 (100 x 136
down to 7 x 9), 80 classes; a dense pair with what GFL says in its 18134 cells, and a two-stage pair with an RPN's three anchors a cell and 512
sampled RoIs an image. What a method has its detectors do again is a stand-in with inputs and outputs of the true size: `towers.resume` goes straight
to the predictors, each a 1x1 convolution, and `proposals.classify` pools its regions and has one linear layer. `bench/step.py` times the true ones.

A method runs with its preset, on the dense pair where it takes it, else on the two-stage one. Peak: bytes allocated at one time during forward and
backward, above what the outputs and the method take, with the gradients of the student's outputs among them; buffers that a library keeps for
itself (oneDNN's) are not seen on a CPU.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's own remarks

import torch
from synthetic import Drawn, Setting, info, random_boxes
from torch import Tensor

from detdistill.errors import UserError
from detdistill.methods import METHODS, Method
from detdistill.run.pairing import build_methods, resolve
from detdistill.types import Targets, TrainState

IDS = torch.tensor([139, 285])
QUICK = Setting(height=200, width=272, channels=64, rois=64, embedding=256, repeats=2)


class Bench:
    """A pair of outputs made ready."""

    def __init__(self, setting: Setting, form: str):
        device, generator = torch.device(setting.device), torch.Generator().manual_seed(0)
        self.setting, self.info = setting, info(setting, form)
        boxes = tuple(random_boxes(setting.boxes, setting, generator).to(device) for _ in range(2))
        labels = tuple(
            torch.randint(setting.classes, (setting.boxes,), generator=generator).to(device) for _ in range(2)
        )
        self.targets = Targets(boxes, labels)
        drawn = [Drawn(setting, self.info, self.targets, seed, learns=seed == 1) for seed in (1, 2)]
        self.student, self.teacher = (one.dense() if form == "dense" else one.two_stage() for one in drawn)
        self.leaves = drawn[0].leaves

    def build(self, name: str) -> Method:
        """The method with its preset. Raises UserError where it refuses the pair."""
        torch.manual_seed(0)
        options = resolve({name: {}}, self.info, self.info)
        return build_methods(options, self.info, self.info)[0].to(self.setting.device).train()

    def forward(self, method: Method) -> Tensor:
        """The method's sum."""
        torch.manual_seed(0)
        terms = method(self.student, self.teacher, self.targets, TrainState(step=500, steps=1000, ids=IDS))
        return torch.stack([term.float() for term in terms.values()]).sum()

    def both(self, method: Method) -> None:
        """Forward and backward. The gradients go at the next `clear`."""
        self.forward(method).backward()

    def clear(self, method: Method) -> None:
        for tensor in (*self.leaves, *method.parameters()):
            tensor.grad = None


def settle(device: torch.device) -> None:
    """Wait for the device's queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(piece: Callable[[], object], device: torch.device) -> float:
    """On one CPU thread by the time that the process itself was given: other processes can't stretch it."""
    now = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    settle(device)
    begin = now()
    kept = piece()
    settle(device)
    spent = (now() - begin) * 1000
    del kept
    return spent


def peak_bytes(piece: Callable[[], object], device: torch.device) -> int:
    """Most bytes that the piece has allocated at one time, above what was there: from torch's allocator on a GPU, from the profiler's record of every
    allocation and release on a CPU."""
    if device.type == "cuda":
        settle(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        piece()
        settle(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        piece()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in changes), initial=0))


def measure(bench: Bench, name: str, form: str) -> dict[str, Any]:
    """One row; with `refused` in place of numbers where the method doesn't take the pair, with `failed` where it broke."""
    row: dict[str, Any] = {"method": name, "form": form}
    try:
        method, device = bench.build(name), torch.device(bench.setting.device)
        times: dict[str, list[float]] = {"forward": [], "both": []}
        for number in range(bench.setting.repeats + 1):
            spent = {
                key: milliseconds(lambda run=run: run(method), device)
                for key, run in (("forward", bench.forward), ("both", bench.both))
            }
            bench.clear(method)
            if number:  # the first round does not count
                for key, value in spent.items():
                    times[key].append(value)
        row |= {f"{key}_ms": round(statistics.median(values), 2) for key, values in times.items()}
        row["peak_bytes"] = peak_bytes(lambda: bench.both(method), device)
        row["loss"] = bench.forward(method).item()
        bench.clear(method)
    except UserError as error:
        row["refused"] = str(error)
    except Exception as error:  # one method's fault must not hide the others' numbers
        row["failed"] = f"{type(error).__name__}: {error}"
    return row


def rows_of(name: str, forms: Sequence[str], benches: Mapping[str, Bench], every: bool) -> list[dict[str, Any]]:
    """The rows of a method: of every form, or of the first that it takes, else of its last refusal."""
    rows = []
    for form in forms:
        rows.append(measure(benches[form], name, form))
        if not every and "refused" not in rows[-1]:
            return rows[-1:]
    return rows if every else rows[-1:]


def line(row: Mapping[str, Any]) -> str:
    """Of the table."""
    if "forward_ms" not in row:
        return f"| {row['method']} | {row['form']} | {row.get('failed') or row.get('refused')} | | |"
    return f"| {row['method']} | {row['form']} | {row['forward_ms']:.1f} | {row['both_ms']:.1f} | {row['peak_bytes'] / 2**20:.1f} |"


def environment(setting: Setting) -> dict[str, Any]:
    """What the numbers hang on."""
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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=list(METHODS), help="default: all")
    parser.add_argument(
        "--form",
        choices=["auto", "dense", "two_stage", "both"],
        default="auto",
        help="auto: dense where the method takes it",
    )
    parser.add_argument(
        "--quick", action="store_true", help="an eighth of the cells, a quarter of the channels, two repeats"
    )
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    torch.set_num_threads(options.threads)
    base = asdict(QUICK if options.quick else Setting())
    setting = Setting(**{**base, "device": options.device, "repeats": options.repeats or base["repeats"]})
    forms = ["dense", "two_stage"] if options.form in ("auto", "both") else [options.form]
    benches = {form: Bench(setting, form) for form in forms}
    rows = []
    print("| method | form | forward ms | forward + backward ms | peak MB |\n|---|---|---|---|---|")
    for name in options.method:
        for row in rows_of(name, forms, benches, every=options.form == "both"):
            rows.append(row)
            print(line(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "environment": environment(setting)}, indent=2) + "\n")
    return 1 if any("failed" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
