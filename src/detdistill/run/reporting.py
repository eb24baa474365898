"""`report`: one HTML page about runs, their teacher and what distillation changed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from detdistill import evaluation
from detdistill.data import Data, open_data
from detdistill.errors import UserError, one_line, plural
from detdistill.files import write_text
from detdistill.reporting import Member, Story, best_of, page
from detdistill.run.report_models import Judged, Truth, judge, members
from detdistill.run.report_pictures import gallery
from detdistill.run.report_runs import PLAIN, Group, find_groups
from detdistill.run.splits import check_splits
from detdistill.run.tables import printer

PAGE = "report.html"
RESAMPLES = 1000
BUDGET = 6_000_000  # boxes times resamples that take about two seconds
FEWEST = 100  # resamples; with fewer, an interval means little
OTHERS = (
    "The numbers from boxes (intervals over images, curves, kinds of errors, confusion, pictures) are those of the "
    "images that are left."
)
TOLERANCE = 0.1  # AP; a larger difference to metrics.json is told


def report(
    runs: Sequence[Path | str],
    out: Path | None = None,
    *,
    resamples: int = RESAMPLES,
    overwrite: bool = False,
    data: Data | None = None,
    console: Console | None = None,
) -> Path:
    """Write the page about run folders and comparisons, and return its path.

    Students are grouped by data and detector; teacher, plain and distilled runs are told apart by their recipes. out:
    the file; None for report.html in the only folder, which is replaced. resamples: of the images, for the intervals.
    data: the data set of all runs, if it is open already. Raises UserError before anything is written.
    """
    folders = [Path(run) for run in runs]
    path = _file(folders, out, overwrite)
    if resamples < 1:
        raise UserError(f"--resamples {resamples}: give at least 1")
    stories = [_story(group, resamples, data) for group in find_groups(folders)]
    write_text(path, page(stories))
    printer(console)(f"report: {path}")
    return path


def report_at_end(
    folder: Path,
    data: Data,
    *,
    boxes: int = 0,
    resamples: int = RESAMPLES,
    console: Console | None = None,
) -> None:
    """Write report.html at the end of a run or a comparison. A fault costs the page and not the run: it is only told.

    boxes: of the run; if they are many, fewer resamples are drawn, or the page is left to `detdistill report`.
    """
    say = printer(console)
    resamples = min(resamples, BUDGET // (2 * boxes)) if boxes else resamples  # the teacher has boxes, too
    if resamples < FEWEST and boxes:
        say(f"`detdistill report {folder}` writes a page about this run")
        return
    try:
        report([folder], resamples=resamples, overwrite=True, data=data, console=console)
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        reason = kind + one_line(error)
        say(f"warning: {folder / PAGE} was not written ({reason}); the run is complete")


def _file(folders: Sequence[Path], out: Path | None, overwrite: bool) -> Path:
    """The file to write. Raises UserError if it can't be, or if `out` exists and `overwrite` is not set.

    report.html in a folder is always replaced: each run writes it, and it holds nothing of the user's own.
    """
    if not folders:
        raise UserError("no runs: give the folders of runs or comparisons")
    if out is None and len(folders) > 1:
        raise UserError("several folders need --out FILE.html, so that the page has a place")
    path = folders[0] / PAGE if out is None else out
    if path.is_dir():
        raise UserError(f"--out {path} is a folder: name a file, such as {path / PAGE}")
    if out is not None and path.exists() and not overwrite:
        raise UserError(f"--out {path} exists: replace it with --overwrite, or choose another file")
    return path


def _story(group: Group, resamples: int, data: Data | None) -> Story:
    """The models of a group, as far as its data set can be read."""
    config = group.first.recipe.data
    try:
        opened, missing = (data, "") if data is not None else _open(group)
        split, training = opened.evaluation_split(config), opened.training_split(config)
    except UserError as error:
        absent = {"data": f"The data set can't be read: {error}"}
        return _told(group, members(group, None, {}, None), absent=absent)
    truth = Truth(split, evaluation.resample(len(split), resamples))
    absent = {"images": missing} if missing else {}
    runs = [run for each in [*group.runs.values(), group.teachers] for run in each]
    judged = {run.folder: judge(run.results, truth, run.folder) for run in runs if run.results is not None}
    stored = (group.measured or {}).get("results")
    teacher = None if stored is None else judge(stored, truth, "the teacher of the comparison")
    if lost := max((each.lost for each in judged.values()), default=0):
        absent.setdefault("images", f"The data set no longer has {plural(lost, 'image')} of the runs. {OTHERS}")
    if not absent and (changed := _changed(group, truth, judged)):
        group.notes.append(changed)
    made = members(group, truth, judged, teacher)
    best = best_of(made)
    pictures = gallery(group, PLAIN if best is None else best.label, truth, judged, teacher)
    if pictures.problem:
        absent["pictures"] = pictures.problem
    return _told(
        group,
        made,
        split=split.name,
        images=len(split),
        training_images=len(training),
        helped=pictures.helped,
        hurt=pictures.hurt,
        absent=absent,
        resamples=resamples,
        palette={name: f"rgb{evaluation.color(index)}" for index, name in enumerate(split.classes)},
    )


def _told(group: Group, made: Sequence[Member], **known: Any) -> Story:
    """The story with what is known whether or not the data set can be read. known: further fields."""
    recipe, notes = group.first.recipe, list(dict.fromkeys(group.notes))
    data = recipe.data.path or "explicit files"
    return Story(student=recipe.model.name, data=data, members=made, notes=notes, **known)


def _open(group: Group) -> tuple[Data, str]:
    """The data set of the group, and what is missing of it. Raises UserError if no image is left."""
    config = group.first.recipe.data
    try:
        opened, missing = open_data(config), ""
    except UserError as error:
        if config.on_bad_record == "skip":
            raise
        opened = open_data(config.model_copy(update={"on_bad_record": "skip"}))
        missing = f"A part of the data set can't be read any more: {error}. {OTHERS}"
    check_splits(opened, group.first.folder)
    return opened, missing


def _changed(group: Group, truth: Truth, judged: Mapping[Path, Judged]) -> str:
    """A note if the AP of a run's boxes on this data set is not the one that the run has measured."""
    everything = np.ones((1, len(truth.split)))
    for run in [run for each in [*group.runs.values(), group.teachers] for run in each]:
        if run.folder in judged and run.metrics["AP"] is not None:
            now = float(evaluation.average_precision(judged[run.folder].matches, everything)[0])
            if abs(now - run.metrics["AP"]) > TOLERANCE:
                return (
                    f"The boxes of {run.folder} have AP {now:.1f} on the data set as it is now, and had "
                    f"{run.metrics['AP']:.1f} at the end of the run. The data set, or a file of the run, has changed."
                )
    return ""
