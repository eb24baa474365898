"""Measure the cost of distillation: the time of a training step with methods, compared with the sum of its parts.

    python bench/step.py [--quick] [--detector gfl fcos] [--method pkd crosskd pkd,crosskd] [--image-size 320]
                         [--batch-size 8] [--repeats 15] [--threads 1] [--device cpu] [--json FILE]

    ratio = distillation step / (student step + teacher's forward pass [+ teacher's tail]),   median over rounds

Each round runs every part once, one after another, so a change in the speed of the machine slows all parts alike.
Quote ratios, not milliseconds. The teacher's forward pass stops when the methods have what they read.
CrossKD by its definition also runs the teacher's tail: the layers of the teacher's head after position i, forward and
backward to their input, on features of the student. The tail is part of the ideal time. If a method runs another part
of a detector again (`proposals.classify`, `queries.redecode`), this part is not in the ideal time.
A ratio above 1 is the overhead of this package and the arithmetic of the method's loss.

Each detector is measured with each method. If a method cannot serve a detector, the table and the JSON file have a row
with the `reason` instead of a ratio. If a measurement fails, the row has the error as `reason` and `failed` is true,
and the exit code is 1.
Without --detector and --method, pairs that a method cannot serve are left out.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from detdistill.detectors.build import build
from detdistill.detectors.registry import DETECTORS
from detdistill.engine.distillation import Distillation
from detdistill.engine.optim import build_optimizer, set_learning_rate
from detdistill.errors import UserError
from detdistill.methods import Method
from detdistill.recipe import ModelConfig, TrainConfig
from detdistill.run.pairing import build_methods, check_methods, resolve
from detdistill.testing import scene
from detdistill.types import Detector, DetectorOutput, Need, TowerState

CLASSES = tuple("abcdef")
PUBLISHED_STRIDES = {name: record.strides for name, record in DETECTORS.items() if record.strides}
DEFAULT_STRIDES = (8, 16, 32, 64, 128)
STRIDES = PUBLISHED_STRIDES | {"faster_rcnn": (4, 8, 16, 32, 64), "mask_rcnn": (4, 8, 16, 32, 64)}
QUICK_DETECTORS = ("gfl", "retinanet", "fcos")
DEFAULT_METHODS = ("pkd", "crosskd")
TARGET_RATIOS = {"pkd": 1.05}
HEADER = """| detector | method | student ms | teacher ms | tail ms | distill ms | ratio | range over rounds |
|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Case:
    """One row of the table: a student and a teacher as HEAD:BACKBONE, and the methods that run together."""

    student: str
    teacher: str
    methods: tuple[str, ...]

    def names(self) -> dict[str, str]:
        """The fields of the row that say what was measured."""
        return {
            "detector": self.student.split(":")[0],
            "method": "+".join(self.methods),
            "student": self.student,
            "teacher": self.teacher,
        }


@dataclass(frozen=True)
class Setting:
    """The sizes of the measurement. channels, tower_depth: of both detectors. levels: largest number of levels."""

    image_size: int
    batch_size: int
    channels: int
    tower_depth: int
    levels: int
    repeats: int
    device: str = "cpu"


QUICK = Setting(image_size=192, batch_size=4, channels=64, tower_depth=2, levels=3, repeats=5)
FULL = Setting(image_size=320, batch_size=8, channels=128, tower_depth=4, levels=5, repeats=15)


class RefusalError(Exception):
    """A method cannot serve the pair. The message is the reason of the method."""


class Bench:
    """The detectors, methods and batch of one case, and the functions that are measured.

    Raises RefusalError if a method cannot serve the pair, and UserError if a detector cannot be built.
    """

    def __init__(self, case: Case, setting: Setting):
        self.setting, self.device = setting, torch.device(setting.device)
        torch.manual_seed(0)
        self.student = self._detector(case.student)
        self.teacher = self._detector(case.teacher)
        cast(nn.Module, self.teacher).eval().requires_grad_(False)
        options = {name: {} for name in case.methods}
        try:
            resolved = resolve(options, self.student.info, self.teacher.info)
            self.methods = build_methods(resolved, self.student.info, self.teacher.info)
        except UserError as error:
            raise RefusalError(str(error)) from None
        batch, targets = scene(
            len(CLASSES), (setting.image_size * 4 // 5, setting.image_size), setting.batch_size, cut=False
        )
        self.batch, self.targets = batch.to(self.device), targets.to(self.device)
        self.need = Distillation(self.student, self.methods).need
        self._step_without_methods = self._make_step([])
        self._step_with_methods = self._make_step(self.methods)

    def _detector(self, name: str) -> Detector:
        setting = self.setting
        strides = STRIDES.get(name.split(":")[0], DEFAULT_STRIDES)[: setting.levels]
        config = ModelConfig(
            name=name,
            strides=strides,
            channels=setting.channels,
            tower_depth=setting.tower_depth,
            queries=100,
            backbone_weights="none",
        )
        return cast(Any, build(config, CLASSES)).to(self.device)

    def _make_step(self, methods: Sequence[Method]) -> Callable[[DetectorOutput | None], None]:
        """A function that runs one training step in the same way as the engine.

        The learning rate is 0, so that every round does the same work.
        """
        distillation = Distillation(self.student, methods).to(self.device).train()
        optimizer = build_optimizer(distillation, TrainConfig())
        set_learning_rate(optimizer, 0.0)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

        def step(teacher_output: DetectorOutput | None) -> None:
            terms = distillation(self.batch, self.targets, teacher_output=teacher_output)
            torch.stack([term.float() for term in terms.values()]).sum().backward()
            nn.utils.clip_grad_norm_(parameters, 10.0)
            optimizer.step()
            optimizer.zero_grad()

        return step

    def student_step(self) -> None:
        """A training step on the task losses alone."""
        self._step_without_methods(None)

    def teacher_forward(self) -> DetectorOutput:
        """The teacher's forward pass, up to the last part that the methods read."""
        with torch.no_grad():
            return self.teacher.observe(self.batch, need=self.need)

    def distillation_step(self) -> None:
        """The teacher's forward pass and a training step on the task losses and the terms of the methods."""
        self._step_with_methods(self.teacher_forward())

    def tail(self) -> Callable[[], None] | None:
        """A function that runs the teacher's head from each tower state that the methods read, or None without states.

        It runs the layers after the state forward, and backward to the state.
        """
        if not self.need.towers:
            return None
        with torch.no_grad():
            towers = self.teacher.observe(self.batch, need=Need(towers=self.need.towers)).towers
        assert towers is not None

        def run() -> None:
            for state in towers.states.values():
                resumed = towers.resume(TowerState(state.depth, leaves(state.classification), leaves(state.regression)))
                box_part = resumed.boxes if resumed.edges is None else resumed.edges
                (resumed.logits.sum() + box_part.sum()).backward()

        return run


def leaves(levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same maps, detached, as leaves that receive gradients."""
    return tuple(level.detach().requires_grad_() for level in levels)


def clock(device: torch.device) -> tuple[str, Callable[[], float]]:
    """The name of the clock, and a function that returns its time in seconds.

    On one CPU thread it is the CPU time of the process, so other processes have little influence.
    """
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return "process", time.process_time
    return "wall", time.perf_counter


def milliseconds(function: Callable[[], object], device: torch.device) -> float:
    """The time of one call of the function."""
    _, now = clock(device)
    settle(device)
    start = now()
    function()
    settle(device)
    return (now() - start) * 1000


def settle(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_megabytes(function: Callable[[], object], device: torch.device) -> float | None:
    """Peak memory of torch's allocator on a GPU during the call. None on other devices, which do not report it."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    function()
    settle(device)
    return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)


def run_rounds(parts: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of each part in each round. One more round runs first and is not counted."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(repeats + 1):
        for name, function in parts.items():
            duration = milliseconds(function, device)
            if number > 0:
                times[name].append(duration)
    return times


def measure(case: Case, setting: Setting) -> dict[str, Any]:
    """The row of a case with its times and ratio. Raises as `Bench` does."""
    bench = Bench(case, setting)
    parts: dict[str, Callable[[], object]] = {
        "student": bench.student_step,
        "teacher": bench.teacher_forward,
        "distill": bench.distillation_step,
    }
    tail = bench.tail()
    if tail is not None:
        parts["tail"] = tail
    times = {"tail": [0.0] * setting.repeats} | run_rounds(parts, setting.repeats, bench.device)
    rounds = list(zip(times["distill"], times["student"], times["teacher"], times["tail"], strict=True))
    ideal_times = [student + teacher + tail for _, student, teacher, tail in rounds]
    ratios = [distill / (student + teacher + tail) for distill, student, teacher, tail in rounds]
    ratios_without_tail = [distill / (student + teacher) for distill, student, teacher, _ in rounds]
    names = case.names()
    return {
        **names,
        **{f"{name}_ms": round(statistics.median(values), 2) for name, values in times.items()},
        "ideal_ms": round(statistics.median(ideal_times), 2),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_spread": [round(min(ratios), 4), round(max(ratios), 4)],
        "ratio_without_tail": round(statistics.median(ratios_without_tail), 4),
        "target": TARGET_RATIOS.get(names["method"]),
        "student_peak_mb": peak_megabytes(bench.student_step, bench.device),
        "distill_peak_mb": peak_megabytes(bench.distillation_step, bench.device),
    }


def row_of(case: Case, setting: Setting) -> dict[str, Any]:
    """The row of a case: its measurement, or `reason` if a method cannot serve the pair.

    If anything else goes wrong, `reason` is the error and `failed` is True.
    """
    try:
        return measure(case, setting)
    except RefusalError as error:
        return {**case.names(), "reason": str(error)}
    except Exception as error:  # a failure in one case must not hide the rows of the other cases
        return {**case.names(), "reason": f"{type(error).__name__}: {' '.join(str(error).split())}", "failed": True}


def line(row: Mapping[str, Any]) -> str:
    """The row as a line of a markdown table: the times and the ratio, or the reason why there are none."""
    if "reason" in row:
        return f"| {row['detector']} | {row['method']} | {row['reason']} | | | | | |"
    times = " | ".join(f"{row[f'{name}_ms']:.1f}" for name in ("student", "teacher", "tail", "distill"))
    low, high = row["ratio_spread"]
    return f"| {row['detector']} | {row['method']} | {times} | {row['ratio']:.3f} | {low:.3f} to {high:.3f} |"


def environment(setting: Setting) -> dict[str, Any]:
    """The settings, the hardware and the versions that the numbers depend on."""
    device = torch.device(setting.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {
        **asdict(setting),
        "hardware": name,
        "clock": clock(device)[0],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": load,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": " ".join(sys.argv),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small images and few rounds: under a minute on one core")
    parser.add_argument(
        "--detector",
        nargs="+",
        choices=list(DETECTORS),
        help=f"default: all; with --quick {', '.join(QUICK_DETECTORS)}",
    )
    parser.add_argument(
        "--method",
        nargs="+",
        help=f"a name, or names joined by commas to run them together; default: {' '.join(DEFAULT_METHODS)}",
    )
    parser.add_argument("--student", default="mobilenetv2_035", help="backbone of the student")
    parser.add_argument("--teacher", default="resnet18", help="backbone of the teacher")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: cuda if there is one"
    )
    for name in ("image-size", "batch-size", "channels", "tower-depth", "levels", "repeats"):
        default, quick = (getattr(setting, name.replace("-", "_")) for setting in (FULL, QUICK))
        parser.add_argument(f"--{name}", type=int, help=f"default: {default}; with --quick {quick}")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    try:
        for methods in options.method or ():
            check_methods({name: {} for name in methods.split(",")})
    except UserError as error:
        parser.error(f"--method: {error}")
    return options


def main() -> int:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    base = asdict(QUICK if options.quick else FULL)
    changes = {name: getattr(options, name) for name in base if getattr(options, name) is not None}
    setting = Setting(**{**base, **changes})
    detectors = options.detector or (QUICK_DETECTORS if options.quick else tuple(DETECTORS))
    is_default = options.detector is None and options.method is None
    rows: list[dict[str, Any]] = []
    print(HEADER)
    for head in detectors:
        for methods in options.method or DEFAULT_METHODS:
            case = Case(f"{head}:{options.student}", f"{head}:{options.teacher}", tuple(methods.split(",")))
            row = row_of(case, setting)
            is_refused = "reason" in row and not row.get("failed")
            if is_default and is_refused:
                continue
            rows.append(row)
            print(line(row), flush=True)
    if options.json:
        result = {"rows": rows, "environment": environment(setting)}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if any(row.get("failed") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
