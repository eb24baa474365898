"""`demo`: teacher, plain student and distilled student on the built-in images, side by side."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from detdistill import evaluation
from detdistill.data import EvalLoader, Record, Split, open_data
from detdistill.engine.checkpoint import checkpoint_path
from detdistill.files import replacing, write_json
from detdistill.recipe import Overrides, Recipe, merge
from detdistill.recipe import load as load_recipe
from detdistill.run.folder import choose_folder
from detdistill.run.models import load, place
from detdistill.run.tables import number, table
from detdistill.run.training import Outcome, distill, train
from detdistill.types import Detections

TEACHER, STUDENT = "demo-teacher", "demo"  # packaged recipes
SHOWN = 4  # test images in the picture
THRESHOLD = 0.4  # lowest score of a box in the picture
TITLE = 40  # height of the titles in pixels
KEPT = ("AP", "AP50", "AP75", "params", "flops", "latency_ms", "train_seconds")  # metrics in table.json


def demo(
    over: Overrides,
    out: Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train the three detectors, print the table, and write table.json and detections.png into `out`.

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
    stages: dict[str, tuple[Callable[..., Outcome], Recipe]] = {
        "teacher": (train, teacher),
        "plain": (train, student.model_copy(update={"methods": {}})),
        "distilled": (distill, student),
    }
    metrics: dict[str, Mapping[str, Any]] = {}
    for index, (name, (verb, recipe)) in enumerate(stages.items(), 1):
        visible.print(f"\n{index}/{len(stages)} {name}: {recipe.model.name}")
        started = checkpoint_path(folder / name).exists()
        restart = overwrite or (resume and not started)
        outcome = verb(recipe, folder / name, resume=resume and started, overwrite=restart, console=console)
        metrics[name] = outcome.metrics
    summary = _summary({name: recipe for name, (_, recipe) in stages.items()}, metrics)
    write_json(folder / "table.json", summary)
    with replacing(folder / "detections.png") as temporary:
        _picture(student, folder).save(temporary)
    _show(summary, folder, visible)
    return summary


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
