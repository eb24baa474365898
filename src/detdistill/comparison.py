"""Many methods, one recipe, several seeds: every run a normal run folder, and a table that says which differences are noise."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from scipy.stats import t as student_t

from detdistill import evaluation, tables
from detdistill.data import Data, Split
from detdistill.engine.watch import NotFiniteError
from detdistill.errors import UserError
from detdistill.evaluation import Matches
from detdistill.files import write_json, write_text
from detdistill.inference import measure, talker
from detdistill.models import find, place, start
from detdistill.pairing import build_methods, check_methods, resolve
from detdistill.recipe import Recipe
from detdistill.run import distill, open_with_notes, train
from detdistill.runfolder import RunFolder, choose, main_process

PLAIN = "none"
MARK = "comparison.json"
LEVEL = 0.95


@dataclass(frozen=True)
class Entry:
    """A line of the table. label: `none`, or methods joined by `+`. recipe: of its runs, but for the seed."""

    label: str
    recipe: Recipe


def compare(
    entries: Sequence[Entry],
    seeds: int,
    out: Path | None = None,
    *,
    resamples: int = 1000,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Every entry with `seeds` seeds from its recipe's on, the content of comparison.json; and comparison.md, its table.

    A run lies in OUT/LABEL/seed-N. Seeds are the outer loop, so that after the first pass every method has one. With resume finished runs
    are kept, the one that was stopped goes on, and methods or seeds may have been added. resamples: of the test images, for
    the second interval. Raises UserError before the first run where a method can't serve the pair.
    """
    say = talker(console)
    entries = _with_plain(entries)
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: at least 1")
    first = entries[0].recipe
    folder = choose(out, "comparison", resume=resume, overwrite=overwrite, mark=MARK)
    data = open_with_notes(first, say)
    teacher = _meet(entries, data, say)
    folder.mkdir(parents=True, exist_ok=True)
    split = data.evaluation_split(first.data)
    known = _known(folder) if resume else {}
    told: dict[str, Any] = {
        "student": first.model.name,
        "teacher": known.get("teacher") or _measured(teacher, first, data, split),
        "data": first.data.path,
        "split": split.name,
        "images": len(split),
        "seeds": [first.train.seed + number for number in range(seeds)],
        "rows": [],
    }
    if main_process() and not known:
        write_json(folder / MARK, told)
    found: dict[str, list[Path]] = {entry.label: [] for entry in entries}
    stopped: dict[str, str] = {}
    for seed in told["seeds"]:
        for number, entry in enumerate(entries, 1):
            if entry.label in stopped:
                continue
            say(f"\nseed {seed}, {entry.label} ({number} of {len(entries)})")
            try:
                found[entry.label].append(_run(entry, seed, folder, resume=resume, overwrite=overwrite, console=console))
            except NotFiniteError as error:  # a finding about this method, which the others need not wait for
                stopped[entry.label] = f"stopped with seed {seed}: {error}"
                say(stopped[entry.label])
    whole = {label: runs for label, runs in found.items() if label not in stopped}
    told["rows"] = rows(whole, told["teacher"]["AP"], data, split, first.train.batch_size, resamples)
    told["stopped"] = stopped
    if main_process():
        write_json(folder / MARK, told)
        write_text(folder / "comparison.md", markdown(told))
    if console is not None:
        show(told, console)
        say(f"written to {folder}")
    return told


def _with_plain(entries: Sequence[Entry]) -> list[Entry]:
    """Plain training first: without it there is no gain."""
    labels = [entry.label for entry in entries]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice:
        raise UserError(f"--methods names {twice} twice")
    if not any(entry.recipe.methods for entry in entries):
        raise UserError("--methods: nothing to compare with plain training; give methods, such as none,pkd,crosskd,pkd+crosskd")
    base = entries[0].recipe
    plain = next((entry for entry in entries if entry.label == PLAIN), Entry(PLAIN, base.model_copy(update={"methods": {}})))
    return [plain, *(entry for entry in entries if entry.label != PLAIN)]


def _meet(entries: Sequence[Entry], data: Data, say: Any) -> Any:
    """The teacher, once every entry's methods have met it and the student: a method that can't serve them stops here."""
    recipe = entries[1].recipe
    for entry in entries:
        check_methods(entry.recipe.methods)
    teacher, report = find(recipe.teacher.path, data.classes, recipe.teacher.model)
    say(f"teacher: {report}")
    student, _ = start(recipe.model, data.classes, recipe.train.seed)
    for entry in entries:
        build_methods(resolve(entry.recipe.methods, student.info, teacher.info), student.info, teacher.info)
    return teacher


def _known(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MARK).read_text())


def _measured(teacher: Any, recipe: Recipe, data: Data, split: Split) -> dict[str, Any]:
    """The teacher on the images that the students are measured on; AP None where its classes are others."""
    if set(teacher.info.classes) != set(data.classes):
        return {"AP": None, "AP50": None}
    place(teacher, recipe.train.device)
    found, _ = measure(teacher, data, split, recipe.data, recipe.train)
    return {name: found[name] for name in ("AP", "AP50", "params", "flops", "latency_ms")}


def _run(entry: Entry, seed: int, folder: Path, *, resume: bool, overwrite: bool, console: Console | None) -> Path:
    """One run, finished; its folder."""
    own = folder / entry.label / f"seed-{seed}"
    recipe = entry.recipe.model_copy(update={"train": entry.recipe.train.model_copy(update={"seed": seed})})
    begun = resume and ((own / "checkpoint").exists() or RunFolder(own).finished)
    fresh = overwrite or (resume and not begun)
    verb = distill if recipe.methods else train
    verb(recipe, own, resume=begun, overwrite=fresh and (own / "recipe.yaml").exists(), console=console)
    return own


def rows(
    found: Mapping[str, Sequence[Path]], teacher: float | None, data: Data, split: Split, batch_size: int, resamples: int
) -> list[dict[str, Any]]:
    """A row a label, best first; plain training is the label `none`. found: run folders by label, a seed each, in the same order."""
    names = dict(zip(data.category_ids, data.classes, strict=True))
    truth = split.ground_truth()
    weights = evaluation.resample(len(split), resamples)
    matches = {
        label: [evaluation.match(truth, json.loads((run / "predictions.json").read_text()), names) for run in runs]
        for label, runs in found.items()
    }
    metrics = {label: [RunFolder(run).metrics() for run in runs] for label, runs in found.items()}
    told = [_row(label, metrics[label], metrics[PLAIN], teacher, batch_size) | _images(label, matches, weights) for label in found]
    for row in told:
        row["verdict"] = verdict(row["gain"], row["gain_over_seeds"], row["gain_over_images"]) if row["method"] != PLAIN else ""
    return sorted(told, key=lambda row: -(row["AP"] or 0.0))


def _row(
    label: str, own: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]], teacher: float | None, batch_size: int
) -> dict[str, Any]:
    values = [metrics["AP"] or 0.0 for metrics in own]
    gains = [mine - (theirs["AP"] or 0.0) for mine, theirs in zip(values, plain, strict=True)]
    gap = None if teacher is None else teacher - statistics.mean(theirs["AP"] or 0.0 for theirs in plain)
    gain = statistics.mean(gains)
    paces = [batch_size / metrics["images_per_second"] for metrics in own if metrics.get("images_per_second")]
    memory = [metrics["peak_memory_bytes"] for metrics in own if metrics.get("peak_memory_bytes")]
    return {
        "method": label,
        "AP": statistics.mean(values),
        "AP50": statistics.mean(metrics["AP50"] or 0.0 for metrics in own),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "by_seed": values,
        "gain": gain,
        "gain_by_seed": gains,
        "gain_over_seeds": interval(gains),
        "gap_recovered": gain / gap if gap and gap > 0 else None,
        "seconds_per_step": statistics.median(paces) if paces else None,
        "peak_memory_bytes": max(memory) if memory else None,
    }


def _images(label: str, matches: Mapping[str, Sequence[Matches]], weights: Any) -> dict[str, Any]:
    return {"gain_over_images": None if label == PLAIN else evaluation.gain_interval(matches[PLAIN], matches[label], weights, LEVEL)}


def interval(gains: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Student's t interval of the mean of paired gains, one a seed; None for a single one."""
    if len(gains) < 2:
        return None
    half = float(student_t.ppf((1 + level) / 2, len(gains) - 1)) * statistics.stdev(gains) / len(gains) ** 0.5
    return statistics.mean(gains) - half, statistics.mean(gains) + half


def verdict(gain: float, over_seeds: tuple[float, float] | None, over_images: tuple[float, float] | None) -> str:
    """In words. A difference counts where both intervals leave out 0: another seed and other images would have shown it too."""
    unsure = [name for name, found in (("seeds", over_seeds), ("images", over_images)) if found and found[0] <= 0 <= found[1]]
    if unsure:
        return f"noise: other {' or '.join(unsure)} could turn it"
    side = "better" if gain > 0 else "worse"
    return side if over_seeds else f"{side} on these images; one seed tells nothing of others"


def show(told: Mapping[str, Any], console: Console) -> None:
    """The table, and each method's line in words."""
    console.print()
    tables.table(console, list(_COLUMNS), [_cells(row) for row in told["rows"]])
    teacher = tables.number(told["teacher"]["AP"])
    console.print(
        f"\nteacher AP {teacher}; {told['split']} split, {told['images']} images; seeds {', '.join(map(str, told['seeds']))}. "
        "Intervals of 95 %: over seeds (paired t) and over test images (paired bootstrap)."
    )
    for row in told["rows"]:
        if row["method"] != PLAIN:
            console.print(f"{row['method']}: {row['gain']:+.1f} AP over plain training, {row['verdict']}")
    for label, reason in told["stopped"].items():
        console.print(f"{label}: {reason}")


_COLUMNS = ("method", "AP", "sd", "gain", "over seeds", "over images", "of the gap", "s a step", "peak memory")


def _cells(row: Mapping[str, Any]) -> list[str]:
    plain = row["method"] == PLAIN
    gap = row["gap_recovered"]
    memory = row["peak_memory_bytes"]
    return [
        "plain" if plain else row["method"],
        tables.number(row["AP"]),
        tables.number(row["deviation"]),
        "-" if plain else f"{row['gain']:+.1f}",
        "-" if plain else _span(row["gain_over_seeds"]),
        "-" if plain else _span(row["gain_over_images"]),
        "-" if plain or gap is None else f"{100 * gap:.0f} %",
        tables.number(row["seconds_per_step"], 3),
        "-" if memory is None else f"{memory / 2**20:.0f} MiB",
    ]


def _span(found: Sequence[float] | None) -> str:
    return "-" if found is None else f"{found[0]:+.1f} .. {found[1]:+.1f}"


def markdown(told: Mapping[str, Any]) -> str:
    """comparison.md: the table for a page, with the verdicts."""
    lines = [f"| {' | '.join((*_COLUMNS, 'verdict'))} |", "|---" * (len(_COLUMNS) + 1) + "|"]
    lines += [f"| {' | '.join((*_cells(row), row['verdict']))} |" for row in told["rows"]]
    lines += [f"| {label} |{' - |' * (len(_COLUMNS) - 1)} {reason} |" for label, reason in told["stopped"].items()]
    head = f"Student {told['student']} on {told['data']}, {told['split']} split ({told['images']} images)"
    seeds = ", ".join(map(str, told["seeds"]))
    return f"{head}; teacher AP {tables.number(told['teacher']['AP'])}; seeds {seeds}; intervals of 95 %.\n\n" + "\n".join(lines) + "\n"
