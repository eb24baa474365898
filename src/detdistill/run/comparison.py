"""`compare`: several methods under one recipe and several seeds. Each run is an ordinary run folder; a table says which
differences are noise."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from detdistill.data import Data, Split
from detdistill.distributed import barrier, is_main
from detdistill.engine.checkpoint import flat
from detdistill.engine.device import open_accelerator
from detdistill.engine.fit import MAY_CHANGE
from detdistill.engine.trackers import check_trackers
from detdistill.errors import UserError
from detdistill.files import write_json, write_text
from detdistill.recipe import Recipe, parse, read_yaml
from detdistill.run.comparison_runs import Entry, train_all, warn_if_short
from detdistill.run.defaults import with_levels
from detdistill.run.evaluating import measure
from detdistill.run.folder import COMPARISON as MARK
from detdistill.run.folder import TEACHER_BOXES, RunFolder, choose_folder, make_folder, recipe_text
from detdistill.run.models import place
from detdistill.run.reporting import PAGE, report_at_end
from detdistill.run.setup import RESULT_FREE, check_recipe, check_teacher, digest, make_pair, open_with_notes
from detdistill.run.standings import PLAIN, markdown, rows, show
from detdistill.run.tables import Say, printer
from detdistill.types import Detector

RECIPE, TABLE = "comparison.yaml", "comparison.md"
SEEDS = 3


def compare(
    entries: Sequence[Entry],
    seeds: int | None = None,
    out: Path | None = None,
    *,
    resamples: int = 1000,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train every entry with `seeds` seeds, counted from its recipe's. Returns the content of comparison.json
    and `out`, its folder; comparison.md has the table, report.html everything else.

    A run is in OUT/LABEL/seed-N. Seeds are the outer loop, so that after the first pass every method has one. With
    `resume`, finished runs are kept, the interrupted run continues, earlier rows stay in the table, and methods or
    seeds can be added. seeds: None for 3, or with `resume` for as many as the table has. resamples: of the test images,
    for the interval over images. Raises UserError before anything is written or trained: if a method can't serve the
    pair, or if the teacher is too weak.
    """
    say = printer(console)
    folder = choose_folder(out, "comparison", resume=resume, overwrite=overwrite, mark=MARK)
    stored = json.loads((folder / MARK).read_text()) if resume else {}
    entries = _with_plain(entries)
    check_trackers(entries[0].recipe.train.trackers)
    open_accelerator(entries[0].recipe.train)  # raises UserError for an impossible device; the processes meet here
    data, settled = open_with_notes(with_levels(entries[0].recipe, say), say)
    same = {"model": settled.model, "data": settled.data}
    entries = [Entry(entry.label, entry.recipe.model_copy(update=same)) for entry in entries]
    if resume:
        entries = _with_stored(entries, folder)
    if not any(entry.recipe.methods for entry in entries):
        raise UserError(
            "--methods: nothing to compare with plain training; give methods, such as none,pkd,crosskd,pkd+crosskd"
        )
    first = entries[0].recipe
    count = _seed_count(seeds, stored)
    if resamples < 1:
        raise UserError(f"--resamples {resamples}: give at least 1")
    split = data.evaluation_split(first.data)
    teacher, boxes = _check_entries(entries, data, split, stored, say)
    summary: dict[str, Any] = {
        "student": first.model.name,
        "teacher": teacher,
        "data": first.data.path,
        "split": split.name,
        "images": len(split),
        "training_images": len(data.training_split(first.data)),
        "seeds": [first.train.seed + number for number in range(count)],
        "methods": [entry.label for entry in entries],
        "rows": stored.get("rows", []),
        "stopped": stored.get("stopped", {}),
    }
    warn_if_short(first, summary["training_images"], say)
    if is_main():
        _begin(folder, entries, summary, overwrite=overwrite)
        if boxes is not None:
            write_text(folder / TEACHER_BOXES, json.dumps(boxes, allow_nan=False) + "\n")
    barrier()
    runs, summary["stopped"] = train_all(entries, summary["seeds"], folder, resume=resume, console=console)
    summary["rows"] = rows(runs, summary["teacher"]["AP"], data, split, first.train.images_per_step, resamples)
    if is_main():
        write_json(folder / MARK, summary)
        write_text(folder / TABLE, markdown(summary))
    if console is not None:
        show(summary, console)
        say(f"written to {folder}")
    if is_main():
        report_at_end(folder, data, resamples=resamples, console=console)
    return {**summary, "out": str(folder)}


def _with_plain(entries: Sequence[Entry]) -> list[Entry]:
    """The entries with plain training first, since gains are measured against it.

    Raises UserError if methods are named twice, in whatever order.
    """
    labels: dict[frozenset[str], str] = {}
    for entry in entries:
        if entry.methods in labels:
            earlier = labels[entry.methods]
            note = "" if earlier == entry.label else f", once as {earlier}"
            raise UserError(f"--methods names {entry.label} twice{note}; name it once")
        labels[entry.methods] = entry.label
    plain = next((entry for entry in entries if entry.label == PLAIN), None)
    plain = plain or Entry(PLAIN, entries[0].recipe.model_copy(update={"methods": {}}))
    return [plain, *(entry for entry in entries if entry.label != PLAIN)]


def _with_stored(entries: Sequence[Entry], folder: Path) -> list[Entry]:
    """The entries, and those of the table in `folder` that are not among them, with their stored options.

    Raises UserError if the settings differ from the stored ones.
    """
    path = folder / RECIPE
    if not path.exists():
        return list(entries)
    stored = parse(read_yaml(path), str(path))
    _check_same_settings(stored, entries, folder)
    base = entries[0].recipe
    named = {entry.methods for entry in entries}
    labels = json.loads((folder / MARK).read_text())["methods"]
    kept = []
    for label in labels:
        if frozenset(label.split("+")) not in named:
            options = {name: stored.methods[name] for name in label.split("+")}
            kept.append(Entry(label, base.model_copy(update={"methods": options})))
    return [*entries, *kept]


def _check_same_settings(stored: Recipe, entries: Sequence[Entry], folder: Path) -> None:
    """Raises UserError that names the fields in which one table would mix two recipes."""
    free: Any = {"train": MAY_CHANGE, "teacher": RESULT_FREE["teacher"], "methods": True}
    before = flat(stored.model_dump(mode="json", exclude=free))
    now = flat(entries[0].recipe.model_dump(mode="json", exclude=free))
    for name, options in stored.methods.items():
        for entry in entries:
            if name in entry.recipe.methods:
                before[f"methods.{name}"] = dict(options)
                now[f"methods.{name}"] = dict(entry.recipe.methods[name])
    before["train.max_steps"] = stored.train.max_steps
    now["train.max_steps"] = entries[0].recipe.train.max_steps
    if (now["train.max_steps"] or math.inf) > (before["train.max_steps"] or math.inf):
        now["train.max_steps"] = before["train.max_steps"]  # more steps are fine: finished runs continue too
    changed = [
        f"{name} was {before.get(name)!r} and is {value!r}" for name, value in now.items() if before.get(name) != value
    ]
    if changed:
        raise UserError(
            f"--resume: the settings differ from those stored in {folder}: {', '.join(changed)}; keep them, or choose "
            "another --out"
        )


def _seed_count(seeds: int | None, stored: Mapping[str, Any]) -> int:
    existing = len(stored.get("seeds", ()))
    if seeds is None:
        return existing or SEEDS
    least = max(1, existing)
    if seeds < least:
        raise UserError(
            f"--seeds {seeds}: give at least {least}{', which the table already has' if existing > 1 else ''}"
        )
    return seeds


def _check_entries(
    entries: Sequence[Entry], data: Data, split: Split, stored: Mapping[str, Any], say: Say
) -> tuple[dict[str, Any], list[dict[str, Any]] | None]:
    """The teacher's numbers and boxes on the evaluation split, after the methods of every entry were built for the
    pair. No boxes if they are not measured: the stored numbers are kept, and some teachers can't be measured.

    Raises UserError if a method can't serve the pair, or if the teacher has other weights than the teacher of the
    stored table.
    """
    recipe = next(entry.recipe for entry in entries if entry.recipe.methods)
    for entry in entries:
        if entry.recipe.methods:
            check_recipe(entry.recipe)
    data.training_split(recipe.data)  # raises UserError if it does not exist
    pair = make_pair(recipe, data.classes, say)
    predictions_are_read = False
    for entry in entries:
        _, methods = pair.methods(entry.recipe.methods)
        predictions_are_read |= any(method.need.head for method in methods)
    weights, before = digest(pair.teacher), stored.get("teacher", {})
    if before.get("digest", weights) != weights:
        raise UserError(
            f"--resume: the weights of the teacher {recipe.teacher.path} differ from those of this table; choose "
            "another --out"
        )
    check_teacher(pair.teacher, data, recipe, predictions_are_read=predictions_are_read, say=say)
    if before:
        return {**before, "digest": weights}, None
    numbers, boxes = _measured(pair.teacher, recipe, data, split)
    return numbers | {"digest": weights}, boxes


def _measured(
    teacher: Detector, recipe: Recipe, data: Data, split: Split
) -> tuple[dict[str, Any], list[dict[str, Any]] | None]:
    """The teacher's AP and cost, and its boxes; AP and boxes None if its classes differ from those of the data."""
    if set(teacher.info.classes) != set(data.classes):
        return {"AP": None, "AP50": None}, None
    place(teacher, recipe.train.device)
    metrics, boxes = measure(teacher, data, split, recipe.data, recipe.train)
    return {name: metrics[name] for name in ("AP", "AP50", "params", "flops", "latency_ms")}, boxes


def _begin(folder: Path, entries: Sequence[Entry], summary: Mapping[str, Any], *, overwrite: bool) -> None:
    """Create the folder, and write what a resumed comparison needs.

    overwrite: the runs of an earlier comparison are removed, and no other files.
    """
    make_folder(folder)
    if overwrite:
        runs = [path.parent for path in folder.glob("*/seed-*/recipe.yaml")]
        for run in runs:
            RunFolder(run).clear()
        for label in {run.parent for run in runs}:
            if not any(label.iterdir()):
                label.rmdir()
        for name in (TABLE, TEACHER_BOXES, PAGE):
            (folder / name).unlink(missing_ok=True)
    methods = {name: options for entry in entries for name, options in entry.recipe.methods.items()}
    write_text(folder / RECIPE, recipe_text(entries[0].recipe.model_copy(update={"methods": methods})))
    write_json(folder / MARK, summary)
