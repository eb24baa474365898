"""What distillation costs: one training step of the plain student, the teacher's look, and the distillation step, in turn.

    python bench/step.py [--quick] [--detector gfl fcos] [--method pkd crosskd pkd,crosskd] [--image-size 320] [--batch-size 8]
                         [--repeats 15] [--threads 1] [--device cpu] [--json FILE]

    ratio = distillation step / (student step + teacher's look [+ the teacher's tail]),    the median over rounds

A round runs each of them once, one after another, so that a machine whose speed drifts slows them alike: quote ratios, not milliseconds.
The look is as deep as the method's need. The tail is what CrossKD adds by its definition: the teacher's layers after position i, forward and
backward to their inputs, on features of the student's. What is left over 1 is our overhead and the arithmetic of the method's own loss.
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
from detdistill.methods import Method
from detdistill.recipe import ModelConfig, TrainConfig
from detdistill.run.pairing import build_methods, resolve
from detdistill.testing import scene
from detdistill.types import Detector, DetectorOutput, Need, TowerState

CLASSES = tuple("abcdef")
PUBLISHED = {name: record.strides for name, record in DETECTORS.items() if record.strides}
STRIDES = PUBLISHED | {"faster_rcnn": (4, 8, 16, 32, 64), "mask_rcnn": (4, 8, 16, 32, 64)}
DENSE = ("gfl", "retinanet", "fcos", "atss")
TARGETS = {"pkd": 1.05}  # of the ratio


@dataclass(frozen=True)
class Case:
    """What is measured together: a student and a teacher as HEAD:BACKBONE, and methods."""

    student: str
    teacher: str
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """How it is measured. channels, tower_depth: of both detectors. strides: how many levels at most."""

    image_size: int
    batch_size: int
    channels: int
    tower_depth: int
    levels: int
    repeats: int
    device: str = "cpu"


QUICK = Setting(image_size=192, batch_size=4, channels=64, tower_depth=2, levels=3, repeats=5)
FULL = Setting(image_size=320, batch_size=8, channels=128, tower_depth=4, levels=5, repeats=15)


def cases(heads: Sequence[str], methods: Sequence[str], student: str, teacher: str) -> list[Case]:
    """Every head with every method that takes it; DETRDistill those with learned queries."""
    listed = [(head, tuple(method.split(","))) for head in heads for method in methods]
    learned = tuple(name for name, record in DETECTORS.items() if record.learned_queries)
    serves = {("pkd",): tuple(DETECTORS), ("detrdistill",): learned}
    return [
        Case(f"{head}:{student}", f"{head}:{teacher}", names)
        for head, names in listed
        if head in serves.get(names, DENSE)
    ]


class Bench:
    """One case made ready: its detectors, methods and batch, and the timed pieces as functions without arguments."""

    def __init__(self, case: Case, setting: Setting):
        self.setting, self.device = setting, torch.device(setting.device)
        torch.manual_seed(0)
        self.student, self.teacher = (self._detector(name) for name in (case.student, case.teacher))
        cast(nn.Module, self.teacher).eval().requires_grad_(False)
        options = resolve({name: {} for name in case.methods}, self.student.info, self.teacher.info)
        self.methods = build_methods(options, self.student.info, self.teacher.info)
        batch, targets = scene(
            len(CLASSES), (setting.image_size * 4 // 5, setting.image_size), setting.batch_size, cut=False
        )
        self.batch, self.targets = batch.to(self.device), targets.to(self.device)
        self.need = Distillation(self.student, self.methods).need
        self.plain, self.taught = self._stepper([]), self._stepper(self.methods)

    def _detector(self, name: str) -> Detector:
        setting = self.setting
        strides = STRIDES.get(name.split(":")[0], (8, 16, 32, 64, 128))[: setting.levels]
        config = ModelConfig(
            name=name,
            strides=strides,
            channels=setting.channels,
            tower_depth=setting.tower_depth,
            queries=100,
            backbone_weights="none",
        )
        return cast(Any, build(config, CLASSES)).to(self.device)

    def _stepper(self, methods: Sequence[Method]) -> Callable[[DetectorOutput | None], None]:
        """A training step as the engine does it, at a rate of 0: every round does the same work."""
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
        self.plain(None)

    def teacher_look(self) -> DetectorOutput:
        with torch.no_grad():
            return self.teacher.observe(self.batch, need=self.need)

    def distillation_step(self) -> None:
        self.taught(self.teacher_look())

    def tail(self) -> Callable[[], None] | None:
        """The teacher's layers from each state that a method enters, forward, and backward to that state; None where no method does."""
        if not self.need.towers:
            return None
        with torch.no_grad():
            towers = self.teacher.observe(self.batch, need=Need(towers=self.need.towers)).towers
        assert towers is not None

        def run() -> None:
            for state in towers.states.values():
                resumed = towers.resume(TowerState(state.depth, leaves(state.classification), leaves(state.regression)))
                compared = resumed.boxes if resumed.edges is None else resumed.edges
                (resumed.logits.sum() + compared.sum()).backward()

        return run


def leaves(levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same maps as leaves that ask for gradients."""
    return tuple(level.detach().requires_grad_() for level in levels)


def clock(device: torch.device) -> tuple[str, Callable[[], float]]:
    """Its name and the clock, in seconds. On one CPU thread the time that the process itself was given: other processes can't stretch it."""
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return "process", time.process_time
    return "wall", time.perf_counter


def timed(piece: Callable[[], object], device: torch.device) -> float:
    """Milliseconds."""
    _, now = clock(device)
    settle(device)
    begin = now()
    piece()
    settle(device)
    return (now() - begin) * 1000


def settle(device: torch.device) -> None:
    """Wait for the device's queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak(piece: Callable[[], object], device: torch.device) -> float | None:
    """Megabytes that the piece has in use at most, of the GPU's allocator; None on other devices, whose allocators don't tell."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    piece()
    settle(device)
    return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)


def rounds(pieces: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of each piece in each round, after one round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in pieces}
    for number in range(repeats + 1):
        for name, piece in pieces.items():
            spent = timed(piece, device)
            if number:
                found[name].append(spent)
    return found


def measure(case: Case, setting: Setting) -> dict[str, Any]:
    """One row."""
    bench = Bench(case, setting)
    pieces: dict[str, Callable[[], object]] = {
        "student": bench.student_step,
        "teacher": bench.teacher_look,
        "distill": bench.distillation_step,
    }
    tail = bench.tail()
    if tail is not None:
        pieces["tail"] = tail
    found = rounds(pieces, setting.repeats, bench.device)
    zeros = [0.0] * setting.repeats
    parts = zip(found["student"], found["teacher"], found.get("tail", zeros), strict=True)
    ideals = [sum(part) for part in parts]
    whole = [mine / ideal for mine, ideal in zip(found["distill"], ideals, strict=True)]
    bare = [mine / (s + t) for mine, s, t in zip(found["distill"], found["student"], found["teacher"], strict=True)]
    times = {f"{name}_ms": round(statistics.median(values), 2) for name, values in found.items()}
    return {
        "detector": case.student.split(":")[0],
        "method": "+".join(case.methods),
        "student": case.student,
        "teacher": case.teacher,
        **{"tail_ms": 0.0, **times},
        "ideal_ms": round(statistics.median(ideals), 2),
        "ratio": round(statistics.median(whole), 4),
        "ratio_spread": [round(min(whole), 4), round(max(whole), 4)],
        "ratio_without_tail": round(statistics.median(bare), 4),
        "target": TARGETS.get("+".join(case.methods)),
        "student_peak_mb": peak(bench.student_step, bench.device),
        "distill_peak_mb": peak(bench.distillation_step, bench.device),
    }


def environment(setting: Setting) -> dict[str, Any]:
    """What the numbers hang on."""
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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small maps and few rounds: under a minute on one core")
    parser.add_argument(
        "--detector", nargs="+", choices=list(DETECTORS), help="default: all; with --quick gfl, retinanet, fcos"
    )
    parser.add_argument(
        "--method", nargs="+", default=["pkd", "crosskd"], help="names, joined by commas where they work together"
    )
    parser.add_argument("--student", default="mobilenetv2_035", help="backbone")
    parser.add_argument("--teacher", default="resnet18", help="backbone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name in ("image-size", "batch-size", "channels", "tower-depth", "levels", "repeats"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    base = asdict(QUICK if options.quick else FULL)
    given = {name: getattr(options, name) for name in base if getattr(options, name) is not None}
    setting = Setting(**{**base, **given})
    heads = options.detector or (["gfl", "retinanet", "fcos"] if options.quick else list(DETECTORS))
    rows = []
    print(
        "| detector | method | student ms | teacher ms | tail ms | distill ms | ratio | over rounds |\n|---|---|---|---|---|---|---|---|"
    )
    for case in cases(heads, options.method, options.student, options.teacher):
        row = measure(case, setting)
        rows.append(row)
        times = " | ".join(f"{row[f'{name}_ms']:.1f}" for name in ("student", "teacher", "tail", "distill"))
        low, high = row["ratio_spread"]
        print(
            f"| {row['detector']} | {row['method']} | {times} | {row['ratio']:.3f} | {low:.3f} to {high:.3f} |",
            flush=True,
        )
    result = {"rows": rows, "environment": environment(setting)}
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
