"""Measure how the size of the images changes the gradient of each method, compared with the gradient of the task.

    python bench/gradients.py --teacher RUN [--student gfl:mobilenetv3_small_050] [--sizes 96 160 320]
                              [--method pkd fgd ...] [--steps 30] [--batches 4] [--data shapes:200] [--json FILE]

For each size, the same images are scaled to it. A student with the strides and the width of the teacher's neck trains
for a few steps without a method, always from the same random weights. Then each method, with its published options,
runs on the same few batches. The number is the ratio that --train.log-gradients shows: the norm of the gradient of the
method's terms at the student's neck, divided by that of the task's terms; here the mean over the batches. The last
column is the ratio at the largest size divided by the ratio at the smallest. A table in Markdown is printed.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from detdistill.data import TrainLoader, open_data
from detdistill.engine.distillation import Distillation
from detdistill.errors import UserError
from detdistill.methods import METHODS
from detdistill.recipe import DataConfig
from detdistill.run import build, load, pair
from detdistill.types import Batch, Detector, Targets, TrainState

Batches = list[tuple[Batch, Targets]]


def batches(data: str, size: int, count: int) -> Batches:
    """The first batches of eight training images, scaled to fit into a square of this side, in a fixed order."""
    config = DataConfig(path=data, image_size=size, flip=0.0)
    loader = TrainLoader(open_data(config).split("train"), config, batch_size=8, seed=0)
    found: Batches = []
    while len(found) < count:
        found += loader.epoch(len(found))
    return found[:count]


def plain_student(name: str, teacher: Detector, steps: Batches) -> Detector:
    """A student from random weights (seed 0) after one step of the task alone on each batch."""
    torch.manual_seed(0)
    shape = {"strides": teacher.info.strides, "channels": teacher.info.width(), "backbone_weights": "none"}
    student = build(name, teacher.info.classes, **shape)
    plain = Distillation(student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    for batch, targets in steps:
        optimizer.zero_grad()
        torch.stack(list(plain(batch, targets).values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 10.0)
        optimizer.step()
    return student


def ratio(student: Detector, teacher: Detector, method: str, measured: Batches) -> float | None:
    """The mean ratio of a method's gradient to the task's, or None if the method can't serve the pair or the size."""
    try:
        torch.manual_seed(0)
        distillation = pair(student, teacher, method)
        values = []
        for batch, targets in measured:
            with torch.no_grad():
                output = teacher.observe(batch, need=distillation.need)
            state = TrainState(step=500, steps=1000, ids=batch.ids)
            distillation(batch, targets, teacher_output=output, state=state, measure=True)
            values.append(distillation.ratios[f"ratio_{method}"])
    except UserError as error:
        print(f"{method}: {error}")
        return None
    return sum(values) / len(values)


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per method: its name and the ratio at each size."""
    teacher = load(arguments.teacher).requires_grad_(False).eval()
    rows: dict[str, dict[str, Any]] = {name: {"method": name} for name in arguments.method}
    for size in arguments.sizes:
        found = batches(arguments.data, size, arguments.steps + arguments.batches)
        student = plain_student(arguments.student, teacher, found[: arguments.steps])
        for name, row in rows.items():
            row[str(size)] = ratio(student, teacher, name, found[arguments.steps :])
    return list(rows.values())


def table(rows: list[dict[str, Any]], sizes: list[int]) -> str:
    """The rows in Markdown, with the change from the smallest to the largest size."""
    lines = [f"| method | {' | '.join(f'{size} px' for size in sizes)} | largest / smallest |"]
    lines.append("|---" * (len(sizes) + 2) + "|")
    for row in rows:
        values = [row[str(size)] for size in sizes]
        cells = ["-" if value is None else f"{value:.2g}" if value < 100 else f"{value:.0f}" for value in values]
        change = "-" if None in (values[0], values[-1]) or not values[0] else f"{values[-1] / values[0]:.2g}"
        lines.append(f"| `{row['method']}` | {' | '.join(cells)} | {change} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, metavar="RUN")
    parser.add_argument("--student", default="gfl:mobilenetv3_small_050", metavar="HEAD:BACKBONE")
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 160, 320])
    feature_methods = ["fgd", "mgd", "pkd", "fitnets", "at", "reviewkd", "cwd", "fgfi", "defeat", "frs", "gid_ld"]
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=[*feature_methods, "crosskd", "ld"])
    parser.add_argument("--steps", type=int, default=30, help="plain steps before the measurement")
    parser.add_argument("--batches", type=int, default=4, help="measured batches")
    parser.add_argument("--data", default="shapes:200")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    found_rows = measure(chosen)
    print(table(found_rows, chosen.sizes))
    if chosen.json:
        chosen.json.write_text(json.dumps({"rows": found_rows}, indent=1))
