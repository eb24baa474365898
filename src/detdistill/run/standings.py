"""The table of a comparison: means over seeds, gains over plain training with their intervals, and a verdict in words."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from scipy.stats import t as student_t

from detdistill import evaluation
from detdistill.data import Data, Split
from detdistill.run import tables
from detdistill.run.folder import RunFolder

PLAIN = "none"
LEVEL = 0.95


def rows(
    found: Mapping[str, Sequence[Path]],
    teacher: float | None,
    data: Data,
    split: Split,
    batch_size: int,
    resamples: int,
) -> list[dict[str, Any]]:
    """A row a label, best first; plain training is the label `none`. found: run folders by label, a seed each, in the same order."""
    names = dict(zip(data.category_ids, data.classes, strict=True))
    truth = split.ground_truth()
    weights = evaluation.resample(len(split), resamples)

    def resampled(run: Path) -> Any:
        matches = evaluation.match(truth, json.loads((run / "predictions.json").read_text()), names)
        return evaluation.average_precision(matches, weights)

    precision = {label: [resampled(run) for run in runs] for label, runs in found.items()}
    metrics = {label: [RunFolder(run).metrics() for run in runs] for label, runs in found.items()}
    told = [
        _row(label, metrics[label], metrics[PLAIN], teacher, batch_size) | _images(label, precision) for label in found
    ]
    for row in told:
        row["verdict"] = (
            verdict(row["gain"], row["gain_over_seeds"], row["gain_over_images"]) if row["method"] != PLAIN else ""
        )
    return sorted(told, key=lambda row: -(row["AP"] or 0.0))


def _row(
    label: str,
    own: Sequence[Mapping[str, Any]],
    plain: Sequence[Mapping[str, Any]],
    teacher: float | None,
    batch_size: int,
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


def _images(label: str, precision: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    return {
        "gain_over_images": None
        if label == PLAIN
        else evaluation.gain_interval(precision[PLAIN], precision[label], LEVEL)
    }


def interval(gains: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Student's t interval of the mean of paired gains, one a seed; None for a single one."""
    if len(gains) < 2:
        return None
    half = float(student_t.ppf((1 + level) / 2, len(gains) - 1)) * statistics.stdev(gains) / len(gains) ** 0.5
    return statistics.mean(gains) - half, statistics.mean(gains) + half


def verdict(gain: float, over_seeds: tuple[float, float] | None, over_images: tuple[float, float] | None) -> str:
    """In words. A difference counts where both intervals leave out 0: another seed and other images would have shown it too."""
    unsure = [
        name for name, found in (("seeds", over_seeds), ("images", over_images)) if found and found[0] <= 0 <= found[1]
    ]
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
    return (
        f"{head}; teacher AP {tables.number(told['teacher']['AP'])}; seeds {seeds}; intervals of 95 %.\n\n"
        + "\n".join(lines)
        + "\n"
    )
