"""The numbers of a report: each model with its intervals, its kinds of errors, its log and its origin."""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detdistill import evaluation
from detdistill.data import Split
from detdistill.data.ids import with_record_ids
from detdistill.errors import UserError
from detdistill.evaluation.bootstrap import Matches
from detdistill.reporting import Confusion, Gain, Log, Member, Origin, Quality
from detdistill.reporting.content import Interval, Role
from detdistill.run.folder import recipe_text
from detdistill.run.report_exports import exports
from detdistill.run.report_runs import PLAIN, Group, Run
from detdistill.run.standings import LEVEL, interval, not_learned

MIN_SCORE = 0.3  # of the boxes that are counted and drawn


@dataclass(frozen=True, eq=False)
class Truth:
    """The images of a group, and the resamples that all its models share.

    weights: (S, I); see `evaluation.resample`.
    """

    split: Split
    weights: np.ndarray

    @property
    def names(self) -> dict[Any, str]:
        """The class names by category id."""
        return dict(zip(self.split.category_ids, self.split.classes, strict=True))

    def results(self, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The results with the ids of the records, of the images that are here."""
        known = {record.id for record in self.split.records}
        return [result for result in with_record_ids(results, self.split) if result["image_id"] in known]


@dataclass(frozen=True, eq=False)
class Judged:
    """The boxes of one run against the ground truth.

    precision: AP of each resample, (S,). lost: the number of images with boxes that the data set does not have.
    """

    results: list[dict[str, Any]]
    matches: Matches
    precision: np.ndarray
    lost: int = 0


def judge(results: Sequence[Mapping[str, Any]], truth: Truth, source: Path | str) -> Judged:
    """Match the boxes of a run with the ground truth. Raises UserError that names `source` if they don't fit it."""
    try:
        own = truth.results(results)
        matches = evaluation.match(truth.split.ground_truth(), own, truth.names)
    except (ValueError, TypeError, KeyError, FloatingPointError) as error:
        raise UserError(
            f"{source}: the boxes do not fit the data set ({error}); give the run and the data set that belong together"
        ) from None
    lost = len({result["image_id"] for result in results}) - len({result["image_id"] for result in own})
    return Judged(own, matches, evaluation.average_precision(matches, truth.weights), lost)


def members(group: Group, truth: Truth | None, judged: Mapping[Path, Judged], teacher: Judged | None) -> list[Member]:
    """Teachers, the plain student, and the distilled students with their gains.

    judged: by the folder of the run; runs without boxes are not in it. teacher: the boxes of the teacher that only a
    comparison measured.
    """
    made = []
    for run in group.teachers:
        name = "teacher" if len(group.teachers) == 1 else f"teacher {run.folder.name}"
        made.append(_member(name, "teacher", [run], truth, judged))
    if not made and group.measured is not None:
        made.append(_stored_teacher(group.measured, truth, teacher))
    best_teacher = max((member.metrics["AP"] for member in made if member.metrics["AP"] is not None), default=None)
    plain = group.runs.get(PLAIN)
    for label in sorted(group.runs, key=lambda label: (label != PLAIN, label)):
        runs = group.runs[label]
        gain = None if label == PLAIN or plain is None else _gain(plain, runs, best_teacher, judged)
        made.append(_member(label, "plain" if not runs[0].recipe.methods else "distilled", runs, truth, judged, gain))
    return made


def _member(
    label: str,
    role: Role,
    runs: Sequence[Run],
    truth: Truth | None,
    judged: Mapping[Path, Judged],
    gain: Gain | None = None,
) -> Member:
    values = [run.metrics["AP"] or 0.0 for run in runs]
    found = [judged[run.folder] for run in runs if run.folder in judged]
    weights = runs[0].folder / "model.safetensors"
    return Member(
        label=label,
        role=role,
        model=runs[0].recipe.model.name,
        metrics=_mean([run.metrics for run in runs]),
        seeds=tuple(run.recipe.train.seed for run in runs),
        deviation=statistics.stdev(values) if len(values) > 1 else None,
        gain=gain,
        quality=_quality(found, truth) if truth is not None and len(found) == len(runs) else None,
        bytes=weights.stat().st_size if weights.is_file() else None,
        exports=tuple(export for run in runs for export in exports(run.folder)),
        log=_log(runs),
        origins=tuple(_origin(run) for run in runs),
    )


def _stored_teacher(measured: Mapping[str, Any], truth: Truth | None, judged: Judged | None) -> Member:
    """A teacher without a run folder, as a comparison measured it."""
    metrics = {name: value for name, value in measured.items() if name not in ("results", "digest", "name")}
    quality = None
    if truth is not None and judged is not None:
        metrics |= evaluation.coco_metrics(truth.split.ground_truth(), judged.results, truth.names)
        quality = _quality([judged], truth)
    return Member("teacher", "teacher", str(measured["name"]), {"per_class": {}, **metrics}, quality=quality)


def _gain(plain: Sequence[Run], distilled: Sequence[Run], teacher: float | None, judged: Mapping[Path, Judged]) -> Gain:
    """The gain over the pairs of runs with the same seed; without such pairs over the means, without interval over
    seeds.
    """
    before = {run.recipe.train.seed: run for run in plain}
    after = {run.recipe.train.seed: run for run in distilled}
    seeds = [seed for seed in after if seed in before]
    pairs = [([before[seed]], [after[seed]]) for seed in seeds] or [(list(plain), list(distilled))]
    gains = [_average(new) - _average(old) for old, new in pairs]
    over_images = None
    if all(run.folder in judged for old, new in pairs for run in [*old, *new]):
        first = [_resampled(old, judged) for old, _ in pairs]
        second = [_resampled(new, judged) for _, new in pairs]
        over_images = evaluation.gain_interval(first, second, LEVEL)
    lead = None if teacher is None else teacher - statistics.mean(_average(old) for old, _ in pairs)
    value = statistics.mean(gains)
    return Gain(
        value,
        dict(zip(seeds, gains, strict=False)) if seeds else {},
        interval(gains),
        over_images,
        value / lead if lead and lead > 0 else None,
        not_learned([run.metrics for run in plain]),
    )


def _resampled(runs: Sequence[Run], judged: Mapping[Path, Judged]) -> np.ndarray:
    """Mean AP of the runs on each resample, (S,)."""
    return np.asarray(np.mean([judged[run.folder].precision for run in runs], axis=0))


def _average(runs: Sequence[Run]) -> float:
    return statistics.mean(run.metrics["AP"] or 0.0 for run in runs)


def _quality(judged: Sequence[Judged], truth: Truth) -> Quality:
    """The mean over the runs."""
    every = np.ones((1, len(truth.split)))
    average = float(np.mean([evaluation.average_precision(each.matches, every) for each in judged]))
    data, names = truth.split.ground_truth(), truth.names
    strong = [[row for row in each.results if row["score"] >= MIN_SCORE] for each in judged]
    runs = [evaluation.coco_run(data, each.results, names) for each in judged]
    lost = [evaluation.lost_precision(run) for run in runs]
    counts = [evaluation.error_counts(evaluation.coco_run(data, rows, names)) for rows in strong]
    confused = [evaluation.confusion(run, tuple(names.values()), MIN_SCORE) for run in runs]
    curves = [evaluation.precision_curves(run) for run in runs]
    return Quality(
        interval=bounds(np.mean([each.precision for each in judged], axis=0), average),
        lost=_mean(lost),
        counts=_mean(counts),
        min_score=MIN_SCORE,
        confusion=Confusion(confused[0].classes, np.mean([each.counts for each in confused], axis=0).tolist()),
        precision={
            threshold: np.mean([curve[threshold] for curve in curves], axis=0).tolist() for threshold in curves[0]
        },
    )


def bounds(values: np.ndarray, average: float) -> Interval | None:
    """The interval of AP over resamples, or None if no resample has objects.

    average: AP on the images themselves. The percentiles are moved by the bias of the resamples: images that occur
    several times make AP higher.
    """
    finite = values[np.isfinite(values)]
    if not finite.size or not np.isfinite(average):
        return None
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - (finite.mean() - average)
    return max(0.0, float(low)), float(high)


def _mean(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of each number over the mappings that have it, also of numbers inside a mapping; None without any."""
    means: dict[str, Any] = {}
    for name in values[0]:
        found = [each[name] for each in values if each.get(name) is not None]
        if found and all(isinstance(value, Mapping) for value in found):
            means[name] = _mean(found)
        elif all(isinstance(value, int | float) for value in found):
            means[name] = statistics.mean(found) if found else None
    return means


def _log(runs: Sequence[Run]) -> Log:
    """The mean over the runs at the steps that all of them logged."""
    by_step = [{row["step"]: row for row in run.rows} for run in runs]
    steps = sorted(set.intersection(*(set(rows) for rows in by_step))) if by_step else []
    names = {name for rows in by_step for row in rows.values() for name in row if name != "step"}
    values: dict[str, tuple[list[float], list[float]]] = {}
    for name in sorted(names):
        points = [(step, [rows[step].get(name) for rows in by_step]) for step in steps]
        kept = [(step, float(np.mean(np.array(found, dtype=float)))) for step, found in points if None not in found]
        if kept:
            values[name] = ([step for step, _ in kept], [value for _, value in kept])
    return Log(values)


def _origin(run: Run) -> Origin:
    verb = "distill" if run.recipe.methods else "train"
    out = f"again/{run.label}-seed-{run.recipe.train.seed}"
    again = ["detdistill", verb, "--recipe", str(run.folder / "recipe.yaml"), "--out", out]
    return Origin(str(run.folder), run.recipe.train.seed, recipe_text(run.recipe), shlex.join(again), run.environment)
