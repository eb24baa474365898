"""`demo`: teacher, plain student and distilled student on the built-in images, an ONNX file, and a page about all."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from detdistill import evaluation
from detdistill.data import EvalLoader, Record, Split, open_data
from detdistill.engine.checkpoint import checkpoint_path
from detdistill.engine.progress import clock
from detdistill.errors import UserError
from detdistill.files import replacing, write_json
from detdistill.recipe import Overrides, Recipe, merge
from detdistill.recipe import load as load_recipe
from detdistill.run.exports import export, record_path
from detdistill.run.folder import RunFolder, choose_folder
from detdistill.run.models import load, place
from detdistill.run.report_runs import read_json
from detdistill.run.reporting import report
from detdistill.run.tables import number, printer, table
from detdistill.run.training import Outcome, distill, train
from detdistill.types import Detections

TEACHER, STUDENT = "demo-teacher", "demo"  # packaged recipes
STEPS = 5  # three runs, the file and the page
COSTS = {"teacher": 52, "plain": 18, "distilled": 30}  # percent of the training time, measured on one core
RESAMPLES = 300  # of the test images, for the intervals on the page; they take a few seconds
SHOWN = 4  # test images in the picture
THRESHOLD = 0.4  # lowest score of a box in the picture
TITLE = 40  # height of the titles in pixels
KEPT = ("AP", "AP50", "AP75", "params", "flops", "latency_ms", "train_seconds")  # metrics in table.json


@dataclass(frozen=True)
class Stage:
    """One of the three runs.

    name: of its folder. text: what happens. verb: `train` or `distill`.
    """

    name: str
    text: str
    verb: Callable[..., Outcome]
    recipe: Recipe


def demo(
    over: Overrides,
    out: Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train the three detectors, export the distilled student, and write what was found into `out`.

    The files: table.json, detections.png, report.html, and distilled/student.onnx with its record. The last line that
    is printed is the path of report.html. If the ONNX file or the page can't be made, the reason is printed and the
    rest is written.
    over: fields that replace those of both recipes. With `resume`, finished runs in `out` are kept and interrupted ones
    continue. Returns the content of table.json.
    """
    visible = console or Console(quiet=True)
    if resume and out is None:
        out = Path("runs/demo")
    folder = choose_folder(out, "demo", resume=resume, overwrite=overwrite, mark="teacher/recipe.yaml")
    teacher = load_recipe(TEACHER, over)
    # The demo trained the teacher itself and its AP is in the table, so a weak teacher is allowed.
    path = {"teacher": {"path": str(folder / "teacher"), "allow_weak": True}}
    student = load_recipe(STUDENT, merge(over, path))
    methods = " + ".join(student.methods)
    stages = (
        Stage("teacher", "a large detector learns from the labels", train, teacher),
        Stage("plain", "a small one learns from the same labels", train, student.model_copy(update={"methods": {}})),
        Stage("distilled", f"it learns from the labels and, by {methods}, from the teacher", distill, student),
    )
    metrics = _train(stages, folder, resume, overwrite, console)
    visible.print(f"\n4/{STEPS} ONNX: the distilled student becomes a file, which is compared with it and timed")
    exported = _export(folder, student, console)
    visible.print(f"\n5/{STEPS} report: numbers, curves and pictures of all three")
    summary = _summary({stage.name: stage.recipe for stage in stages}, metrics) | {"onnx": exported}
    write_json(folder / "table.json", summary)
    with replacing(folder / "detections.png") as temporary:
        _picture(student, folder).save(temporary)
    page = _report(folder, student, visible)
    _show(summary, folder, visible)
    if page is not None:
        visible.print("\nThis page shows it; open it in a browser:")
        visible.print(str(page), soft_wrap=True)
    return summary


def _train(
    stages: Sequence[Stage], folder: Path, resume: bool, overwrite: bool, console: Console | None
) -> dict[str, Mapping[str, Any]]:
    """Run or continue each stage, and return the metrics by its name."""
    metrics: dict[str, Mapping[str, Any]] = {}
    for index, stage in enumerate(stages, 1):
        waiting = [each.name for each in stages[index - 1 :] if overwrite or not RunFolder(folder / each.name).finished]
        left = time_left({name: values["train_seconds"] for name, values in metrics.items()}, waiting)
        printer(console)(f"\n{index}/{STEPS} {stage.name}: {stage.recipe.model.name}, {stage.text}{left}")
        started = checkpoint_path(folder / stage.name).exists()
        restart = overwrite or (resume and not started)
        outcome = stage.verb(
            stage.recipe,
            folder / stage.name,
            resume=resume and started,
            overwrite=restart,
            page=False,
            console=console,
        )
        metrics[stage.name] = outcome.metrics
    return metrics


def time_left(seconds: Mapping[str, float], waiting: Collection[str]) -> str:
    """A remark on the time that the waiting stages will take, from the training seconds of the finished ones.

    It is empty if there are none of either.
    """
    done, rest = (sum(COSTS[name] for name in names) for names in (seconds, waiting))
    return f" (about {clock(sum(seconds.values()) * rest / done)} left in all)" if done and rest else ""


def _export(folder: Path, recipe: Recipe, console: Console | None) -> dict[str, Any] | None:
    """Write the distilled student as an ONNX file, and return the record of its comparison; None if it can't be made.

    The reason is printed. A file that is younger than the weights stays.
    """
    path = folder / "distilled" / "student.onnx"
    record, weights = record_path(path), folder / "distilled" / "model.safetensors"
    if path.exists() and record.exists() and record.stat().st_mtime_ns > weights.stat().st_mtime_ns:
        printer(console)(f"{path}: this file is finished; nothing is left to do")
        return {"path": str(path), **read_json(record, dict)}
    try:
        export(folder / "distilled", path, data=recipe.data, train=recipe.train, overwrite=True, console=console)
    except ImportError as error:
        reason = f"{error.name} is missing; install it with `pip install 'detdistill[onnx]'`, and repeat with --resume"
    except UserError as error:
        reason = str(error)
    else:
        return {"path": str(path), **read_json(record, dict)}
    printer(console)(f"warning: no ONNX file ({reason})")
    return None


def _report(folder: Path, recipe: Recipe, console: Console) -> Path | None:
    """Write the page, and return its path; None if it can't be made. The reason is printed."""
    try:
        return report([folder], resamples=RESAMPLES, data=open_data(recipe.data))
    except UserError as error:
        console.print(f"warning: no page ({error})")
        return None


def _summary(recipes: Mapping[str, Recipe], metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The content of table.json. gain: AP of the distilled student minus the plain one; None if one could not be
    measured.
    """
    rows = [
        {"name": name, "model": recipes[name].model.name, **{key: metrics[name][key] for key in KEPT}}
        for name in metrics
    ]
    plain, distilled = metrics["plain"], metrics["distilled"]
    gain = {
        key: None if None in (distilled[key], plain[key]) else distilled[key] - plain[key] for key in ("AP", "AP50")
    }
    recipe = recipes["distilled"]
    return {"seed": recipe.train.seed, "methods": list(recipe.methods), "rows": rows, "gain": gain}


def _show(summary: Mapping[str, Any], folder: Path, console: Console) -> None:
    rows = [
        [
            row["name"],
            row["model"],
            number(row["AP"]),
            number(row["AP50"]),
            f"{row['params'] / 1e6:.2f}",
            number(row["latency_ms"]),
            f"{row['train_seconds']:.0f}",
        ]
        for row in summary["rows"]
    ]
    console.print()
    columns = ["", "detector", "AP", "AP50", "million parameters", "ms per image", "seconds of training"]
    table(console, columns, rows)
    gains = [f"{round(value, 1) + 0:+} {name}" for name, value in summary["gain"].items() if value is not None]
    methods = " + ".join(summary["methods"])
    console.print(
        f"\nGain of the same student on the same schedule with a teacher: {', '.join(gains) or 'not measurable'} "
        f"({methods})."
    )
    console.print(f"This is one seed ({summary['seed']}); docs/results.md has means and deviations over several seeds.")
    if (file := summary["onnx"]) is not None:
        console.print(
            f"ONNX: {file['path']}, {file['bytes'] / 2**20:.1f} MiB, gives the same detections; "
            f"{file['file_ms']:.1f} ms per image, {file['torch_ms']:.1f} ms in PyTorch."
        )
    console.print(
        f"{folder} holds detections.png (ground truth, plain, distilled), table.json, and the three run folders."
    )


def _picture(recipe: Recipe, folder: Path) -> Image.Image:
    """One row per test image: ground truth, plain student, distilled student."""
    data = open_data(recipe.data)
    split = data.evaluation_split(recipe.data).take(SHOWN)
    columns = {"ground truth": [_ground_truth(record) for record in split.records]}
    for name in ("plain", "distilled"):
        columns[name] = _detections(folder / name, split, recipe)
    pictures = {
        title: [
            evaluation.draw(record.image(), boxes.boxes, boxes.labels, boxes.scores, data.classes, THRESHOLD)
            for record, boxes in zip(split.records, column, strict=True)
        ]
        for title, column in columns.items()
    }
    return _grid(pictures)


def _ground_truth(record: Record) -> Detections:
    return Detections(record.boxes, torch.ones(len(record.labels)), record.labels)


def _detections(run: Path, split: Split, recipe: Recipe) -> list[Detections]:
    """The detections of each image of the split, in pixels of its file."""
    detector = load(run)
    device = place(detector, recipe.train.device)
    detections: list[Detections] = []
    with torch.no_grad():
        for batch, _ in EvalLoader(split, recipe.data, batch_size=SHOWN):
            batch = batch.to(device)
            detections += evaluation.to_original(detector.detect(batch), batch)
    return detections


def _grid(pictures: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """Columns of pictures under their titles, on white. All pictures have the same size."""
    first = next(iter(pictures.values()))
    width, height = first[0].size
    sheet = Image.new("RGB", (width * len(pictures), TITLE + height * len(first)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=24)
    for column, (title, images) in enumerate(pictures.items()):
        pen.text((column * width + width // 2, TITLE // 2), title, fill="black", font=font, anchor="mm")
        for row, image in enumerate(images):
            sheet.paste(image, (column * width, TITLE + row * height))
    return sheet
