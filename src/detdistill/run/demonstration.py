"""`detdistill demo`: teacher, plain student and distilled student on pictures drawn by code, side by side."""

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
from detdistill.run.folder import choose
from detdistill.run.models import load, place
from detdistill.run.tables import number, table
from detdistill.run.training import Outcome, distill, train
from detdistill.types import Detections

TEACHER, STUDENT = "demo-teacher", "demo"  # packaged recipes
SHOWN = 4  # test images in the picture
THRESHOLD = 0.4  # least score of a box in it
TITLE = 40  # pixels of height


def demo(
    over: Overrides,
    out: Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train the three, print the table, and write table.json and detections.png into `out`. over: laid over both recipes.

    With resume, what is finished in `out` is taken as it is, and what isn't goes on. Returns the content of table.json.
    """
    shown = console or Console(quiet=True)
    if resume and out is None:
        out = Path("runs/demo")
    folder = choose(out, "demo", resume=resume, overwrite=overwrite, mark="teacher/recipe.yaml")
    teacher = load_recipe(TEACHER, over)
    # The demo made its teacher itself, and the table says what it is worth: no floor.
    student = load_recipe(STUDENT, merge(over, {"teacher": {"path": str(folder / "teacher"), "allow_weak": True}}))
    stages: dict[str, tuple[Callable[..., Outcome], Recipe]] = {
        "teacher": (train, teacher),
        "plain": (train, student.model_copy(update={"methods": {}})),
        "distilled": (distill, student),
    }
    found: dict[str, Mapping[str, Any]] = {}
    for place_in_row, (name, (verb, recipe)) in enumerate(stages.items(), 1):
        shown.print(f"\n{place_in_row}/{len(stages)} {name}: {recipe.model.name}")
        begun = checkpoint_path(folder / name).exists()
        fresh = overwrite or (resume and not begun)
        found[name] = verb(recipe, folder / name, resume=resume and begun, overwrite=fresh, console=console).metrics
    told = _told({name: recipe for name, (_, recipe) in stages.items()}, found)
    write_json(folder / "table.json", told)
    with replacing(folder / "detections.png") as temporary:
        _picture(student, folder).save(temporary)
    _show(told, folder, shown)
    return told


def _told(recipes: Mapping[str, Recipe], found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The table as JSON. gain: distilled less plain, in points of AP; None where either could not be measured."""
    kept = ("AP", "AP50", "AP75", "params", "flops", "latency_ms", "train_seconds")
    rows = [
        {"name": name, "model": recipes[name].model.name, **{key: found[name][key] for key in kept}} for name in found
    ]
    plain, taught = found["plain"], found["distilled"]
    gain = {key: None if None in (taught[key], plain[key]) else taught[key] - plain[key] for key in ("AP", "AP50")}
    return {
        "seed": recipes["distilled"].train.seed,
        "methods": list(recipes["distilled"].methods),
        "rows": rows,
        "gain": gain,
    }


def _show(told: Mapping[str, Any], folder: Path, console: Console) -> None:
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
        for row in told["rows"]
    ]
    console.print()
    table(console, ["", "detector", "AP", "AP50", "million parameters", "ms an image", "seconds of training"], rows)
    gain = (
        ", ".join(f"{round(value, 1) + 0:+} {name}" for name, value in told["gain"].items() if value is not None)
        or "not measurable"
    )
    console.print(f"\nThe same student, the same schedule, and a teacher: {gain} ({' + '.join(told['methods'])}).")
    console.print(f"This is one seed ({told['seed']}); docs/results.md has means and spreads over several.")
    console.print(
        f"In {folder}: detections.png (ground truth, plain, distilled), table.json, and the three run folders."
    )


def _picture(recipe: Recipe, folder: Path) -> Image.Image:
    """A row for each of a few test images: ground truth, plain student, distilled student."""
    data = open_data(recipe.data)
    split = data.evaluation_split(recipe.data).take(SHOWN)
    columns = {"ground truth": [_truth(record) for record in split.records]}
    columns |= {name: _detections(folder / name, split, recipe) for name in ("plain", "distilled")}
    pictures = {
        title: [
            evaluation.draw(record.image(), own.boxes, own.labels, own.scores, data.classes, THRESHOLD)
            for record, own in zip(split.records, column, strict=True)
        ]
        for title, column in columns.items()
    }
    return _grid(pictures)


def _truth(record: Record) -> Detections:
    return Detections(record.boxes, torch.ones(len(record.labels)), record.labels)


def _detections(run: Path, split: Split, recipe: Recipe) -> list[Detections]:
    """Of each image of the split, in pixels of its file."""
    detector = load(run)
    device = place(detector, recipe.train.device)
    found: list[Detections] = []
    with torch.no_grad():
        for batch, _ in EvalLoader(split, recipe.data, batch_size=SHOWN):
            moved = batch.to(device)
            found += evaluation.to_original(detector.detect(moved), moved)
    return found


def _grid(pictures: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """Columns under their titles, on white. All pictures have one size, as the built-in set's do."""
    first = next(iter(pictures.values()))
    width, height = first[0].size
    sheet = Image.new("RGB", (width * len(pictures), TITLE + height * len(first)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=24)
    for column, (title, pile) in enumerate(pictures.items()):
        pen.text((column * width + width // 2, TITLE // 2), title, fill="black", font=font, anchor="mm")
        for row, picture in enumerate(pile):
            sheet.paste(picture, (column * width, TITLE + row * height))
    return sheet
