"""The runs of a report: read from their folders, and grouped by data and student."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detdistill.engine.checkpoint import flat
from detdistill.engine.log import log_path
from detdistill.errors import UserError, plural, some
from detdistill.recipe import Recipe
from detdistill.run.folder import COMPARISON, TEACHER_BOXES, RunFolder, is_run
from detdistill.run.setup import RESULT_FREE

PLAIN = "plain"
NEEDED = ("AP", "AP50", "per_class")  # of metrics.json


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run. teacher: the folder of its teacher, or None if it has none or the teacher is no run folder.

    results: COCO results with the ids of the files, or None if there is no predictions.json. rows: of the log.
    """

    folder: Path
    recipe: Recipe
    metrics: Mapping[str, Any]
    environment: Mapping[str, Any]
    results: list[dict[str, Any]] | None
    rows: Sequence[Mapping[str, Any]]
    teacher: Path | None

    @property
    def label(self) -> str:
        """Its methods, or `plain`."""
        return "+".join(self.recipe.methods) or PLAIN


@dataclass(eq=False)
class Group:
    """The runs of one student on one data set.

    runs: of the student, by label. teachers: runs on the same data. measured: for a teacher that is no run of its own,
    the numbers and the boxes that a comparison stored. notes: for the reader of the page.
    """

    runs: dict[str, list[Run]]
    teachers: list[Run] = field(default_factory=list)
    measured: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def first(self) -> Run:
        """Any of the runs; all have the same data."""
        return next(iter(self.runs.values()))[0]


def find_groups(paths: Sequence[Path]) -> list[Group]:
    """The runs in the folders, grouped by data and student. Raises UserError for a folder without a finished run."""
    runs: dict[Path, Run] = {}
    comparisons: dict[Path, dict[str, Any]] = {}
    notes: dict[Path, list[str]] = {}
    for path in paths:
        folders, notes[path] = _run_folders(path)
        if (path / COMPARISON).is_file():
            comparisons[path] = read_json(path / COMPARISON, dict)
            notes[path] += [f"{label}: {why}" for label, why in comparisons[path].get("stopped", {}).items()]
        for folder in folders:
            runs.setdefault(folder.resolve(), read_run(folder))
    taught = {run.teacher.resolve() for run in runs.values() if run.teacher is not None}
    groups: dict[Any, Group] = {}
    teachers = {folder: run for folder, run in runs.items() if folder in taught and not run.recipe.methods}
    for folder, run in runs.items():
        if folder not in teachers:
            group = groups.setdefault(_key(run), Group({}))
            group.runs.setdefault(_label(run, group), []).append(run)
    for group in groups.values():
        _add_teachers(group, teachers)
        _complete(group, comparisons, notes)
    for run in teachers.values():  # one that teaches on other data has a section of its own
        if not any(run in group.teachers for group in groups.values()):
            groups.setdefault(_key(run), Group({})).runs.setdefault(run.label, []).append(run)
    return list(groups.values())


def _run_folders(path: Path) -> tuple[list[Path], list[str]]:
    """The finished runs in a folder: itself, those of a comparison, or those directly in it; and notes."""
    if not path.is_dir():
        problem = "is a file" if path.exists() else "no such folder"
        raise UserError(f"{path}: {problem}; give the folder of a run or of a comparison")
    if (path / "recipe.yaml").is_file():
        if not RunFolder(path).finished:
            raise UserError(f"{path}: the run is not finished (no metrics.json); continue it with --resume")
        return [path], []
    pattern = "*/seed-*/recipe.yaml" if (path / COMPARISON).is_file() else "*/recipe.yaml"
    folders = sorted((file.parent for file in path.glob(pattern)), key=_seed_last)
    if (path / COMPARISON).is_file():
        folders = [folder for folder in folders if folder.name.removeprefix("seed-").isdecimal()]
    unfinished = [folder for folder in folders if not RunFolder(folder).finished]
    finished = [folder for folder in folders if folder not in unfinished]
    if not folders:
        raise UserError(
            f"{path} is no run folder (no recipe.yaml) and no comparison (no {COMPARISON}); give a folder that train, "
            "distill or compare has written"
        )
    if not finished:
        raise UserError(f"{path}: none of its {plural(len(folders), 'run')} is finished; continue with --resume")
    names = some(str(folder.relative_to(path)) for folder in unfinished)
    return finished, [f"Not finished, and therefore left out: {names}."] if unfinished else []


def _seed_last(folder: Path) -> tuple[str, int, str]:
    number = folder.name.rpartition("-")[2]
    return str(folder.parent), int(number) if number.isdecimal() else -1, folder.name


def read_run(folder: Path) -> Run:
    """A finished run. Raises UserError that names the file if one is damaged."""
    run = RunFolder(folder)
    recipe = run.recipe()
    assert recipe is not None, "the caller has seen recipe.yaml"
    metrics = read_json(folder / "metrics.json", dict)
    for name in NEEDED:
        if name not in metrics:
            raise UserError(f"{folder / 'metrics.json'}: field {name!r} is missing; copy the file again")
    if not all(isinstance(metrics[name], int | float | None) for name in ("AP", "AP50")):
        raise UserError(f"{folder / 'metrics.json'}: AP or AP50 is not a number; copy the file again")
    boxes, log, environment = folder / "predictions.json", log_path(folder), folder / "environment.json"
    return Run(
        folder,
        recipe,
        metrics,
        read_json(environment, dict) if environment.is_file() else {},
        read_results(boxes) if boxes.is_file() else None,
        _log_rows(log) if log.is_file() else [],
        _teacher_folder(folder, recipe.teacher.path) if recipe.methods else None,
    )


def read_results(path: Path) -> list[dict[str, Any]]:
    """COCO results of a file. Raises UserError if it has none."""
    results = read_json(path, list)
    for number, result in enumerate(results):
        if not isinstance(result, dict) or not {"image_id", "category_id", "bbox", "score"} <= result.keys():
            raise UserError(
                f"{path}: entry {number} has not the fields image_id, category_id, bbox and score; copy the file again"
            )
    return results


def read_json(path: Path, kind: type) -> Any:
    """The content of a JSON file. Raises UserError if it can't be read or is not of this kind."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read as JSON ({error}); copy the file again, or repeat the run") from None
    if not isinstance(content, kind):
        wanted = "an object" if kind is dict else "a list"
        raise UserError(f"{path}: holds no {wanted.split()[-1]}; copy the file again, or repeat the run")
    return content


def _log_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a log. Raises UserError that names the line if one is damaged."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            row = json.loads(line)
            row["step"] + 0
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}, line {number}: not a line of a log; remove it") from None
        rows.append(row)
    return rows


def _teacher_folder(folder: Path, teacher: str) -> Path | None:
    """The run folder of a teacher, whose path may be relative to the folder in which the run was started."""
    if not teacher:
        return None
    candidates = [*(parent / teacher for parent in folder.resolve().parents), Path(teacher)]
    return next((path for path in candidates if is_run(path) and RunFolder(path).finished), None)


def _data_key(recipe: Recipe) -> tuple[Any, ...]:
    """What two recipes share if their runs are measured on the same images."""
    data = recipe.data
    explicit = [split and (str(split.annotations), str(split.images)) for split in (data.train, data.val, data.test)]
    return (os.path.normpath(data.path), *explicit, data.eval_split, data.val_fraction, data.test_fraction)


def _key(run: Run) -> tuple[Any, ...]:
    return (_data_key(run.recipe), run.recipe.model.name)


def _label(run: Run, group: Group) -> str:
    """The label of a run in its group: with its folder, if there is one with other options under this label."""
    for label, others in group.runs.items():
        if others[0].label == run.label and settings(others[0].recipe) == settings(run.recipe):
            return label
    return run.label if run.label not in group.runs else f"{run.label} ({run.folder.name})"


def settings(recipe: Recipe) -> dict[str, Any]:
    """The fields that decide a result, without the seed."""
    chosen = recipe.model_dump(mode="json", exclude=RESULT_FREE)
    chosen["train"].pop("seed")
    return chosen


def _add_teachers(group: Group, given: Mapping[Path, Run]) -> None:
    """The teachers of the group's runs that were measured on the same data."""
    wanted: dict[Path, Run] = {}
    for run in _all(group):
        if run.teacher is not None:
            wanted.setdefault(run.teacher.resolve(), run)
    for folder, student in wanted.items():
        assert student.teacher is not None
        teacher = given.get(folder) or read_run(student.teacher)
        if _data_key(teacher.recipe) != _data_key(student.recipe):
            group.notes.append(f"The teacher {student.teacher} was measured on other data, so it is not shown.")
            continue
        started = [run.environment.get("started") for run in (teacher, student)]
        if all(started) and str(started[0]) > str(started[1]):
            group.notes.append(
                f"The run in {student.teacher} is younger than the student. It is not the teacher that the student had."
            )
        sizes = [run.recipe.data.image_size for run in (teacher, student)]
        if sizes[0] != sizes[1]:
            group.notes.append(f"The teacher was measured at image size {sizes[0]}, the student at {sizes[1]}.")
        group.teachers.append(teacher)


def _complete(group: Group, comparisons: Mapping[Path, dict[str, Any]], notes: Mapping[Path, Sequence[str]]) -> None:
    """Add the notes about the folders of this group, and the teacher that a comparison measured."""
    for path, lines in notes.items():
        own = [run for run in _all(group) if run.folder == path or path in run.folder.parents]
        if not own:
            continue
        group.notes.extend(lines)
        if path in comparisons and not group.teachers:
            measured = comparisons[path].get("teacher", {})
            boxes = path / TEACHER_BOXES
            if measured.get("AP") is not None:
                results = read_results(boxes) if boxes.is_file() else None
                name = next((run.recipe.teacher.path for run in own if run.recipe.methods), "teacher")
                group.measured = {**measured, "name": name, "results": results}
    for label, runs in group.runs.items():
        if label != PLAIN and PLAIN in group.runs:
            group.notes.extend(_unfair(label, group.runs[PLAIN][0].recipe, runs[0].recipe))


def _unfair(label: str, plain: Recipe, distilled: Recipe) -> list[str]:
    """A note about the fields, other than methods and teacher, in which two recipes differ."""
    free = {"methods", "teacher"}
    before, after = (
        flat({part: fields for part, fields in settings(recipe).items() if part not in free})
        for recipe in (plain, distilled)
    )
    changed = {name: value for name, value in after.items() if before.get(name) != value}
    differing = [f"{name} ({before.get(name)} and {value})" for name, value in changed.items()]
    if not differing:
        return []
    problem = f"The plain student and {label} also differ in {some(differing)}."
    return [f"{problem} So the gain is not that of distillation alone."]


def _all(group: Group) -> Iterable[Run]:
    return [run for runs in group.runs.values() for run in runs]
