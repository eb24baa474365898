"""Many methods, one recipe, several seeds: every run a normal run folder, and a table that says which differences are noise."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from detdistill.data import Data, Split
from detdistill.detectors.inherit import inherit
from detdistill.distributed import barrier, is_main
from detdistill.engine.checkpoint import flat
from detdistill.engine.device import open_accelerator
from detdistill.engine.fit import MAY_CHANGE
from detdistill.engine.watch import NotFiniteError
from detdistill.errors import UserError
from detdistill.files import write_json, write_text
from detdistill.recipe import Recipe, parse, read_yaml
from detdistill.run.evaluating import Say, measure, talker
from detdistill.run.folder import RunFolder, choose, recipe_text
from detdistill.run.models import adopt, find, place, start
from detdistill.run.pairing import build_methods, resolve
from detdistill.run.standings import PLAIN, markdown, rows, show
from detdistill.run.training import FREE, check_recipe, check_teacher, digest, distill, open_with_notes, train
from detdistill.types import Detector

MARK, RECIPE, TABLE = "comparison.json", "comparison.yaml", "comparison.md"
SEEDS = 3


@dataclass(frozen=True)
class Entry:
    """A line of the table. label: `none`, or methods joined by `+`. recipe: of its runs, but for the seed."""

    label: str
    recipe: Recipe


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
    """Every entry with `seeds` seeds from its recipe's on, the content of comparison.json; and comparison.md, its table.

    A run lies in OUT/LABEL/seed-N. Seeds are the outer loop, so that after the first pass every method has one. With resume finished runs
    are kept, the one that was stopped goes on, what the table had before stays in it, and methods or seeds may have been added.
    seeds: none for 3, or with resume for as many as there are. resamples: of the test images, for the second interval. Raises UserError
    before anything is written or run where something is wrong: a method that can't serve the pair, a teacher that knows nothing.
    """
    say = talker(console)
    folder = choose(out, "comparison", resume=resume, overwrite=overwrite, mark=MARK)
    known = json.loads((folder / MARK).read_text()) if resume else {}
    entries = _extended(_with_plain(entries), folder) if resume else _with_plain(entries)
    if not any(entry.recipe.methods for entry in entries):
        raise UserError(
            "--methods: nothing to compare with plain training; give methods, such as none,pkd,crosskd,pkd+crosskd"
        )
    first = entries[0].recipe
    count = _seeds(seeds, known)
    if resamples < 1:
        raise UserError(f"--resamples {resamples}: at least 1")
    open_accelerator(
        first.train
    )  # raises UserError on an impossible device or precision; under torchrun the processes meet here
    data = open_with_notes(first, say)
    split = data.evaluation_split(first.data)
    told: dict[str, Any] = {
        "student": first.model.name,
        "teacher": _meet(entries, data, split, known, say),
        "data": first.data.path,
        "split": split.name,
        "images": len(split),
        "seeds": [first.train.seed + number for number in range(count)],
        "methods": [entry.label for entry in entries],
        "rows": known.get("rows", []),
        "stopped": known.get("stopped", {}),
    }
    if is_main():
        _begin(folder, entries, told, overwrite=overwrite)
    _wait()
    found, told["stopped"] = _runs(entries, told["seeds"], folder, resume=resume, console=console)
    told["rows"] = rows(found, told["teacher"]["AP"], data, split, first.train.batch_size, resamples)
    if is_main():
        write_json(folder / MARK, told)
        write_text(folder / TABLE, markdown(told))
    if console is not None:
        show(told, console)
        say(f"written to {folder}")
    return told


def _with_plain(entries: Sequence[Entry]) -> list[Entry]:
    """Plain training first: without it there is no gain. Raises UserError for methods that are named twice, in whatever order."""
    seen: dict[frozenset[str], str] = {}
    for entry in entries:
        methods = frozenset(entry.label.split("+"))
        if methods in seen:
            same = "" if seen[methods] == entry.label else f", once as {seen[methods]}"
            raise UserError(f"--methods names {entry.label} twice{same}; name it once")
        seen[methods] = entry.label
    plain = next((entry for entry in entries if entry.label == PLAIN), None)
    plain = plain or Entry(PLAIN, entries[0].recipe.model_copy(update={"methods": {}}))
    return [plain, *(entry for entry in entries if entry.label != PLAIN)]


def _extended(entries: Sequence[Entry], folder: Path) -> list[Entry]:
    """With what the table in `folder` has and nobody named, each with its options from there. Raises UserError where the recipe is another."""
    path = folder / RECIPE
    if not path.exists():
        return list(entries)
    stored = parse(read_yaml(path), str(path))
    _same(stored, entries, folder)
    base, named = entries[0].recipe, {frozenset(entry.label.split("+")) for entry in entries}
    labels = json.loads((folder / MARK).read_text())["methods"]
    missing = [label for label in labels if frozenset(label.split("+")) not in named]
    kept = [Entry(label, base.model_copy(update={"methods": _options(stored, label)})) for label in missing]
    return [*entries, *kept]


def _options(recipe: Recipe, label: str) -> dict[str, dict[str, Any]]:
    return {name: recipe.methods[name] for name in label.split("+")}


def _same(stored: Recipe, entries: Sequence[Entry], folder: Path) -> None:
    """Raises UserError naming the fields in which a table would have mixed two recipes."""
    free: Any = {"train": MAY_CHANGE, "teacher": FREE["teacher"], "methods": True}
    then, now = (flat(recipe.model_dump(mode="json", exclude=free)) for recipe in (stored, entries[0].recipe))
    for name, options in stored.methods.items():
        for mine in (entry.recipe.methods[name] for entry in entries if name in entry.recipe.methods):
            then[f"methods.{name}"], now[f"methods.{name}"] = dict(options), dict(mine)
    then["train.max_steps"], now["train.max_steps"] = stored.train.max_steps, entries[0].recipe.train.max_steps
    if (now["train.max_steps"] or math.inf) > (
        then["train.max_steps"] or math.inf
    ):  # every run goes on, the finished ones too
        now["train.max_steps"] = then["train.max_steps"]
    changed = [
        f"{name} was {then.get(name)!r} and is {now.get(name)!r}" for name in now if then.get(name) != now.get(name)
    ]
    if changed:
        raise UserError(
            f"--resume: {folder} compares otherwise: {', '.join(changed)}; leave that as it was, or take another --out"
        )


def _seeds(seeds: int | None, known: Mapping[str, Any]) -> int:
    there = len(known.get("seeds", ()))
    if seeds is None:
        return there or SEEDS
    if seeds < max(1, there):
        raise UserError(
            f"--seeds {seeds}: at least {max(1, there)}{', as the table has them already' if there > 1 else ''}"
        )
    return seeds


def _meet(entries: Sequence[Entry], data: Data, split: Split, known: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """The teacher on the images that the students are measured on, once every entry's methods have met it and the student: what one of them
    can't do stops here."""
    recipe = next(entry.recipe for entry in entries if entry.recipe.methods)
    for entry in entries:
        if entry.recipe.methods:
            check_recipe(entry.recipe)
    data.training_split(recipe.data)
    teacher, report = find(recipe.teacher.path, data.classes, recipe.teacher.model)
    say(f"teacher: {report}")
    student, _ = start(adopt(recipe.model), data.classes, recipe.train.seed)
    inherit(student, teacher, recipe.teacher.inherit)
    reads = False
    for entry in entries:
        methods = build_methods(resolve(entry.recipe.methods, student.info, teacher.info), student.info, teacher.info)
        reads |= any(method.need.head for method in methods)
    own, before = digest(teacher), known.get("teacher", {})
    if before.get("digest", own) != own:
        raise UserError(
            f"--resume: the teacher {recipe.teacher.path} has other weights than the one of this table; take another --out"
        )
    check_teacher(teacher, data, recipe, read=reads, say=say)
    return {**before, "digest": own} if before else _measured(teacher, recipe, data, split) | {"digest": own}


def _measured(teacher: Detector, recipe: Recipe, data: Data, split: Split) -> dict[str, Any]:
    """AP None where its classes are others."""
    if set(teacher.info.classes) != set(data.classes):
        return {"AP": None, "AP50": None}
    place(teacher, recipe.train.device)
    found, _ = measure(teacher, data, split, recipe.data, recipe.train)
    return {name: found[name] for name in ("AP", "AP50", "params", "flops", "latency_ms")}


def _begin(folder: Path, entries: Sequence[Entry], told: Mapping[str, Any], *, overwrite: bool) -> None:
    """The folder, what is compared in it, and what a resumption needs. overwrite: an earlier comparison's runs go, and nothing else."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: can't be made ({error.strerror})") from None
    if overwrite:
        runs = list(folder.glob("*/seed-*/recipe.yaml"))
        for run in runs:
            RunFolder(run.parent).clear()
        for label in {run.parents[1] for run in runs}:
            if not any(label.iterdir()):
                label.rmdir()
        (folder / TABLE).unlink(missing_ok=True)
    methods = {name: options for entry in entries for name, options in entry.recipe.methods.items()}
    write_text(folder / RECIPE, recipe_text(entries[0].recipe.model_copy(update={"methods": methods})))
    write_json(folder / MARK, told)


def _runs(
    entries: Sequence[Entry], seeds: Sequence[int], folder: Path, *, resume: bool, console: Console | None
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Run folders by label, a seed each; and why a label has none, as it met a NaN."""
    say = talker(console)
    found: dict[str, list[Path]] = {entry.label: [] for entry in entries}
    stopped: dict[str, str] = {}
    for seed in seeds:
        for number, entry in enumerate(entries, 1):
            if entry.label in stopped:
                continue
            say(f"\nseed {seed}, {entry.label} ({number} of {len(entries)})")
            try:
                found[entry.label].append(_run(entry, seed, folder, resume=resume, console=console))
            except NotFiniteError as error:  # a finding about this method, which the others need not wait for
                stopped[entry.label] = f"stopped with seed {seed}: {error}"
                say(stopped[entry.label])
            _wait()  # what the first process wrote is read by all
    return {label: runs for label, runs in found.items() if label not in stopped}, stopped


def _run(entry: Entry, seed: int, folder: Path, *, resume: bool, console: Console | None) -> Path:
    """One run, finished; its folder. The teacher was checked for all of them."""
    own = folder / entry.label / f"seed-{seed}"
    teacher, settings = entry.recipe.teacher, entry.recipe.train
    changes = {"train": settings.model_copy(update={"seed": seed}), "teacher": teacher.model_copy(update={"sample": 0})}
    begun = resume and ((own / "checkpoint").exists() or RunFolder(own).finished)
    fresh = not begun and (own / "recipe.yaml").exists()  # stopped before its first checkpoint
    verb = distill if entry.recipe.methods else train
    verb(entry.recipe.model_copy(update=changes), own, resume=begun, overwrite=fresh, console=console)
    return own


def _wait() -> None:
    """For the other processes, where there are any."""
    barrier()
