"""The table of a comparison: means over seeds, gains over plain training with intervals, and a verdict in words."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from scipy.stats import t as student_t

from detdistill import evaluation
from detdistill.data import Data, Split
from detdistill.data.ids import with_record_ids
from detdistill.run import tables
from detdistill.run.folder import RunFolder

PLAIN = "none"
LEVEL = 0.95
LEARNED = 1.0  # AP; a plain student below it has learned too little for a comparison
COLUMNS = (
    "method",
    "AP",
    "sd",
    "gain",
    "over seeds",
    "over images",
    "of the gap",
    "epochs",
    "steps",
    "s per step",
    "peak memory",
)


def rows(
    runs: Mapping[str, Sequence[Path]],
    teacher: float | None,
    data: Data,
    split: Split,
    batch_size: int,
    resamples: int,
) -> list[dict[str, Any]]:
    """One row per label, best first. The label of plain training is `none`.

    runs: run folders by label, one per seed, in the same order of seeds. teacher: its AP, or None if it could not be
    measured.
    """
    names = dict(zip(data.category_ids, data.classes, strict=True))
    truth = split.ground_truth()
    weights = evaluation.resample(len(split), resamples)

    def resampled_precision(run: Path) -> Any:
        results = with_record_ids(json.loads((run / "predictions.json").read_text()), split)
        matches = evaluation.match(truth, results, names)
        return evaluation.average_precision(matches, weights)

    precision = {label: [resampled_precision(run) for run in folders] for label, folders in runs.items()}
    metrics = {label: [RunFolder(run).metrics() for run in folders] for label, folders in runs.items()}
    table = []
    for label in runs:
        row = _row(label, metrics[label], metrics[PLAIN], teacher, batch_size)
        row["gain_over_images"] = None
        row["verdict"] = ""
        if label != PLAIN:
            row["gain_over_images"] = evaluation.gain_interval(precision[PLAIN], precision[label], LEVEL)
            row["verdict"] = not_learned(metrics[PLAIN]) or verdict(
                row["gain"], row["gain_over_seeds"], row["gain_over_images"]
            )
        table.append(row)
    return sorted(table, key=lambda row: -(row["AP"] or 0.0))


def _row(
    label: str,
    metrics: Sequence[Mapping[str, Any]],
    plain: Sequence[Mapping[str, Any]],
    teacher: float | None,
    batch_size: int,
) -> dict[str, Any]:
    """The row of a label without its interval over images. metrics, plain: of its runs and of plain training, one per
    seed.
    """
    values = [run["AP"] or 0.0 for run in metrics]
    plain_values = [run["AP"] or 0.0 for run in plain]
    gains = [value - plain_value for value, plain_value in zip(values, plain_values, strict=True)]
    gap = None if teacher is None else teacher - statistics.mean(plain_values)
    gain = statistics.mean(gains)
    seconds = [batch_size / run["images_per_second"] for run in metrics if run.get("images_per_second")]
    memory = [run["peak_memory_bytes"] for run in metrics if run.get("peak_memory_bytes")]
    return {
        "method": label,
        "AP": statistics.mean(values),
        "AP50": statistics.mean(run["AP50"] or 0.0 for run in metrics),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "by_seed": values,
        "gain": gain,
        "gain_by_seed": gains,
        "gain_over_seeds": interval(gains),
        "gap_recovered": gain / gap if gap and gap > 0 else None,
        "epochs": metrics[0].get("epochs"),
        "steps": metrics[0].get("steps"),
        "seconds_per_step": statistics.median(seconds) if seconds else None,
        "peak_memory_bytes": max(memory) if memory else None,
    }


def interval(gains: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Student's t interval of the mean of paired gains, one per seed; None for a single seed."""
    if len(gains) < 2:
        return None
    quantile = float(student_t.ppf((1 + level) / 2, len(gains) - 1))
    half = quantile * statistics.stdev(gains) / len(gains) ** 0.5
    return statistics.mean(gains) - half, statistics.mean(gains) + half


def not_learned(plain: Sequence[Mapping[str, Any]]) -> str:
    """The reason why gains over these runs of plain training mean nothing, or an empty text if they mean something."""
    average = statistics.mean(run["AP"] or 0.0 for run in plain)
    if average >= LEARNED:
        return ""
    return f"no verdict: the plain student has not learned (AP {average:.1f}); train longer"


def verdict(gain: float, over_seeds: tuple[float, float] | None, over_images: tuple[float, float] | None) -> str:
    """The difference in words. It counts if both intervals exclude 0: other seeds and images would show it too."""
    intervals = {"seeds": over_seeds, "images": over_images}
    unsure = [name for name, bounds in intervals.items() if bounds and bounds[0] <= 0 <= bounds[1]]
    if unsure:
        return f"noise: with other {' or '.join(unsure)} the sign could change"
    side = "better" if gain > 0 else "worse"
    return side if over_seeds else f"{side} on these images; one seed says nothing about other seeds"


def show(summary: Mapping[str, Any], console: Console) -> None:
    """Print the table, and one line in words per method."""
    console.print()
    tables.table(console, list(COLUMNS), [_cells(row) for row in summary["rows"]])
    teacher = tables.number(summary["teacher"]["AP"])
    seeds = ", ".join(map(str, summary["seeds"]))
    console.print(
        f"\nteacher AP {teacher}; {_images(summary)}; seeds {seeds}. "
        "95 % intervals: over seeds (paired t) and over test images (paired bootstrap)."
    )
    for row in summary["rows"]:
        if row["method"] != PLAIN:
            console.print(f"{row['method']}: {row['gain']:+.1f} AP over plain training, {row['verdict']}")
    for label, reason in summary["stopped"].items():
        console.print(f"{label}: {reason}")


def markdown(summary: Mapping[str, Any]) -> str:
    """The content of comparison.md: the table with the verdicts."""
    lines = [f"| {' | '.join((*COLUMNS, 'verdict'))} |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {' | '.join((*_cells(row), row['verdict']))} |" for row in summary["rows"]]
    lines += [f"| {label} |{' - |' * (len(COLUMNS) - 1)} {reason} |" for label, reason in summary["stopped"].items()]
    title = f"Student {summary['student']} on {summary['data']}; {_images(summary)}"
    teacher = tables.number(summary["teacher"]["AP"])
    seeds = ", ".join(map(str, summary["seeds"]))
    return f"{title}; teacher AP {teacher}; seeds {seeds}; 95 % intervals.\n\n" + "\n".join(lines) + "\n"


def _images(summary: Mapping[str, Any]) -> str:
    """The images of the comparison in words."""
    evaluated = f"{summary['split']} split, {summary['images']} images"
    trained = summary.get("training_images")
    return evaluated if trained is None else f"{trained} training images; {evaluated}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    plain = row["method"] == PLAIN
    gap, memory = row["gap_recovered"], row["peak_memory_bytes"]
    return [
        "plain" if plain else row["method"],
        tables.number(row["AP"]),
        tables.number(row["deviation"]),
        "-" if plain else f"{row['gain']:+.1f}",
        "-" if plain else _bounds(row["gain_over_seeds"]),
        "-" if plain else _bounds(row["gain_over_images"]),
        "-" if plain or gap is None else f"{100 * gap:.0f} %",
        tables.number(row["epochs"]),
        tables.number(row["steps"], 0),
        tables.number(row["seconds_per_step"], 3),
        "-" if memory is None else f"{memory / 2**20:.0f} MiB",
    ]


def _bounds(bounds: Sequence[float] | None) -> str:
    return "-" if bounds is None else f"{bounds[0]:+.1f} .. {bounds[1]:+.1f}"
