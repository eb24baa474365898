"""Compare what `detdistill inspect --student ... --teacher ...` predicts with what runs take.

    python bench/predictions.py [--quick] [--pair gfl rt_detr] [--steps 24] [--image-size 160] [--batch-size 8]
                                [--threads 1] [--json FILE]

For each pair, a process inspects the pair and predicts, before and after the runs; the mean of both counts. Each
method is trained for a few steps, in a process of its own, by the code of `detdistill distill`: data, loader, log,
checkpoints, evaluation. Measured are the seconds of a step (the median from the third on), the peak memory, and the
seconds of the whole run. The teachers have random weights, which take as long as trained ones, except where suppression
depends on the scores.

On one thread the clock is the CPU time of the process, so other processes have little influence. With more threads it
is the wall clock, and the machine must be idle.

    error = predicted / measured - 1

The exit code is 1 if the error of a step, of the memory or of a whole run is above 0.25.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch

from detdistill import run
from detdistill.data import TrainLoader
from detdistill.errors import UserError
from detdistill.recipe import Recipe, merge, parse
from detdistill.run import training
from detdistill.run.folder import environment
from detdistill.types import Batch, Targets

LIMIT = 0.25
PLAIN = "none"
CLASSES = ("disc", "square", "star", "cross", "plank", "ladder")


@dataclass(frozen=True)
class Pair:
    """A student, a teacher, their strides, and the methods that are compared; joined by + they run together."""

    student: str
    teacher: str
    strides: tuple[int, ...]
    methods: tuple[str, ...]
    fields: Mapping[str, Any]


SMALL, LARGE = "mobilenetv3_small_050", "resnet18"
DENSE = {"channels": 96, "tower_depth": 3}
PAIRS = {
    "gfl": Pair(
        f"gfl:{SMALL}",
        f"gfl:{LARGE}",
        (8, 16, 32, 64),
        (PLAIN, "pkd", "mgd", "fgd", "crosskd", "gid_ld", "crd", "pkd+crosskd"),
        DENSE,
    ),
    "faster_rcnn": Pair(
        f"faster_rcnn:{SMALL}",
        f"faster_rcnn:{LARGE}",
        (8, 16, 32),
        (PLAIN, "cwd", "kd", "crosskd_roi", "chen2017"),
        {"channels": 64, "rois": 128},
    ),
    "mixed": Pair(
        f"retinanet:{SMALL}",
        f"faster_rcnn:{LARGE}",
        (8, 16, 32),
        (PLAIN, "pkd", "reviewkd", "mimic2017"),
        DENSE,
    ),
    "rt_detr": Pair(
        f"rt_detr:{SMALL}", f"rt_detr:{LARGE}", (8, 16, 32), (PLAIN, "pkd", "kddetr"), {"channels": 64, "queries": 100}
    ),
}
QUICK = {"gfl": (PLAIN, "pkd", "crosskd")}
HEADER = """| student | teacher | method | s a step: predicted | measured | error | GiB: predicted | measured | error | s of the run: predicted | measured | error |
|---|---|---|---|---|---|---|---|---|---|---|---|"""  # noqa: E501


class TimedLoader(TrainLoader):
    """The loader of a run, which notes the time at which each batch is asked for."""

    asked: ClassVar[list[float]] = []
    clock: ClassVar[Callable[[], float]] = time.perf_counter

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Batch, Targets]]:
        for pair in super().epoch(number, start):
            yield pair
            type(self).asked.append(type(self).clock())


def clock() -> tuple[str, Callable[[], float]]:
    """The name of the clock, and a function that returns its time in seconds."""
    return ("process", time.process_time) if torch.get_num_threads() == 1 else ("wall", time.perf_counter)


def recipe_of(pair: Pair, methods: Sequence[str], teacher: Path, options: argparse.Namespace) -> Recipe:
    """The recipe of a run of two epochs or more with these methods."""
    count = options.batch_size * options.steps // 2
    fields = {
        "model": {"name": pair.student, "strides": pair.strides, "backbone_weights": "none", **pair.fields},
        "data": {"path": f"shapes:{count}", "image_size": options.image_size},
        "teacher": {"path": str(teacher), "allow_weak": True, "sample": 16},
        "train": {"epochs": 2, "batch_size": options.batch_size, "device": "cpu", "workers": 0},
    }
    return parse(merge(fields, {"methods": {name: {} for name in methods}}), "bench")


def predicted(recipe: Recipe) -> dict[str, Any]:
    """What the inspection says, as it writes it into a JSON file."""
    return run.inspect_pair(recipe, clock=clock()[1]).to_json()


def measured(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Seconds of a step, peak memory and seconds of the whole run, by really training."""
    TimedLoader.clock = staticmethod(clock()[1])  # type: ignore[assignment]
    training.TrainLoader = TimedLoader  # type: ignore[misc]
    begin = TimedLoader.clock()
    if recipe.methods:
        outcome = run.distill(recipe, out)
    else:
        outcome = run.train(recipe.model_copy(update={"teacher": Recipe().teacher}), out)
    whole = TimedLoader.clock() - begin
    later = TimedLoader.asked[2:]
    steps = [after - before for before, after in pairwise(later)]
    return {"step": statistics.median(steps), "memory": outcome.metrics["peak_memory_bytes"], "run": whole}


def in_process(task: str, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The result of `predicted` or `measured` in a new process, whose memory is its own."""
    source, result = folder / "recipe.json", folder / "result.json"
    source.write_text(recipe.model_dump_json())
    command = [sys.executable, __file__, "--task", task, "--recipe", str(source), "--json", str(result)]
    command += ["--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{task} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(result.read_text())


def rows_of(pair: Pair, methods: Sequence[str], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The row of each method: predicted, measured, and the errors."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        teacher = folder / "teacher"
        torch.manual_seed(0)
        fields = {"strides": pair.strides, "backbone_weights": "none", **pair.fields}
        run.save(run.build(pair.teacher, CLASSES, **fields), teacher, image_size=options.image_size)
        single = [method for method in methods if method != PLAIN and "+" not in method]
        groups = [single, *(method.split("+") for method in methods if "+" in method)]
        truths, guesses = {}, []
        for time_of_guess in ("before", "after"):
            contents = [in_process("predicted", recipe_of(pair, group, teacher, options), folder) for group in groups]
            guesses.append(flat(contents))
            if time_of_guess == "before":
                for method in methods:
                    names = [] if method == PLAIN else method.split("+")
                    truths[method] = in_process("measured", recipe_of(pair, names, teacher, options), folder)
        for method in methods:
            both = [guess[method] for guess in guesses]
            mean = {name: statistics.mean(guess[name] for guess in both) for name in ("step", "memory", "hours")}
            yield _row(pair, method, mean, truths[method])


def flat(contents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The predictions of some inspections by method; those of plain training are the first one's."""
    found = {PLAIN: contents[0]["plain"]}
    for content in contents:
        for name, row in {**content["together"], **content["methods"]}.items():
            found.setdefault(name, row)
    return found


def _row(pair: Pair, method: str, guess: Mapping[str, Any], truth: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"student": pair.student, "teacher": pair.teacher, "method": method}
    values = {"step": guess["step"], "memory": guess["memory"], "run": 3600 * guess["hours"]}
    for name, value in values.items():
        row |= {f"predicted_{name}": value, f"measured_{name}": truth[name]}
        row[f"{name}_error"] = round(value / truth[name] - 1, 3) if value and truth[name] else None
    return row


def line(row: Mapping[str, Any]) -> str:
    """The row as a line of a markdown table."""
    cells = [row["student"], row["teacher"], row["method"]]
    for name, scale, digits in (("step", 1, 3), ("memory", 2**30, 2), ("run", 1, 1)):
        for kind in ("predicted", "measured"):
            value = row[f"{kind}_{name}"]
            cells.append("-" if value is None else f"{value / scale:.{digits}f}")
        error = row[f"{name}_error"]
        cells.append("-" if error is None else f"{100 * error:+.0f} %")
    return f"| {' | '.join(cells)} |"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one pair and three methods: about two minutes")
    parser.add_argument("--pair", nargs="+", choices=list(PAIRS), help="default: all")
    parser.add_argument("--steps", type=int, default=24, help="steps of each run")
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--task", choices=("predicted", "measured"), help=argparse.SUPPRESS)
    parser.add_argument("--recipe", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def do_task(options: argparse.Namespace) -> None:
    """One part of a row, in a process of its own. The result is written to --json."""
    recipe = Recipe.model_validate_json(options.recipe.read_text())
    with tempfile.TemporaryDirectory() as out:
        result = predicted(recipe) if options.task == "predicted" else measured(recipe, Path(out) / "run")
    options.json.write_text(json.dumps(result))


def main() -> int:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    if options.task:
        do_task(options)
        return 0
    chosen = {name: PAIRS[name].methods for name in options.pair or PAIRS}
    rows = []
    print(HEADER)
    for name, methods in (QUICK if options.quick else chosen).items():
        for row in rows_of(PAIRS[name], methods, options):
            rows.append(row)
            print(line(row), flush=True)
    facts = {"hardware": platform.processor() or platform.machine(), "cores": os.cpu_count(), "clock": clock()[0]}
    content = {"environment": {**environment(), **facts}, "limit": LIMIT, "rows": rows}
    if options.json:
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    errors = [abs(row[f"{kind}_error"] or 0.0) for row in rows for kind in ("step", "memory", "run")]
    print(f"largest error: {100 * max(errors):.0f} %")
    return int(max(errors) > LIMIT)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"bench/predictions.py: {error}")
