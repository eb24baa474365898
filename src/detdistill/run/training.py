"""The verbs: a recipe becomes objects once, and they run. Each verb is the command of the same name, without the parsing."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from detdistill.data import Data, TrainLoader, open_data
from detdistill.detectors.inherit import inherit
from detdistill.distributed import is_main
from detdistill.engine.device import open_accelerator
from detdistill.engine.distillation import Distillation
from detdistill.engine.fit import fit
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig, Recipe
from detdistill.run.evaluating import Say, evaluate, export, measure, predict, shares, talker
from detdistill.run.folder import Card, RunFolder, choose, is_run
from detdistill.run.models import adopt, build, find, load, place, start
from detdistill.run.pairing import build_methods, check_methods, resolve, schedules
from detdistill.run.tables import number
from detdistill.types import Detector

__all__ = ["Outcome", "build", "distill", "evaluate", "export", "load", "predict", "train"]

FREE = {
    "train": {"device", "workers", "log_every", "log_gradients", "checkpoint_every"},
    "teacher": {"sample", "floor", "allow_weak"},
}  # no number hangs on these


@dataclass(frozen=True)
class Outcome:
    """out: the run folder. metrics: the content of its metrics.json."""

    out: Path
    metrics: Mapping[str, Any]


def train(
    recipe: Recipe,
    out: Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Train `recipe.model` on `recipe.data` without a teacher. Raises UserError before anything is written."""
    if recipe.methods:
        raise UserError(
            f"the recipe distils (methods: {', '.join(recipe.methods)}); use `detdistill distill`, or take the methods out"
        )
    recipe, folder = _begin(recipe, out, resume, overwrite)
    data = open_with_notes(recipe, talker(console))
    student, config = start(recipe.model, data.classes, recipe.train.seed)
    job = Job(recipe, config, data, Distillation(student), None, folder)
    return job.run(resume=resume, overwrite=overwrite, console=console)


def distill(
    recipe: Recipe,
    out: Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Train `recipe.model`, taught by `recipe.teacher` by way of `recipe.methods`. Raises UserError before anything is written."""
    check_recipe(recipe)
    recipe, folder = _begin(recipe, out, resume, overwrite)
    say = talker(console)
    data = open_with_notes(recipe, say)
    teacher, report = find(recipe.teacher.path, data.classes, recipe.teacher.model)
    say(f"teacher: {report}")
    student, config = start(recipe.model, data.classes, recipe.train.seed)
    if recipe.teacher.inherit and not resume:  # a checkpoint has it in its weights
        for line in inherit(student, teacher, recipe.teacher.inherit):
            say(line)
    recipe = recipe.model_copy(update={"methods": resolve(recipe.methods, student.info, teacher.info)})
    methods = build_methods(recipe.methods, student.info, teacher.info)
    distillation = Distillation(student, methods, schedules(recipe.methods), recipe.train.balance_every)
    check_teacher(teacher, data, recipe, read=distillation.need.head, say=say)
    job = Job(recipe, config, data, distillation, teacher, folder)
    return job.run(resume=resume, overwrite=overwrite, console=console)


def check_recipe(recipe: Recipe) -> None:
    """What can be said of a distillation without data or teacher. Raises UserError."""
    if not recipe.methods:
        raise UserError(
            "no method: give --method, such as pkd,crosskd (`detdistill list methods`), or use `detdistill train`"
        )
    check_methods(recipe.methods)
    if recipe.teacher.inherit and is_run(recipe.model.name):
        raise UserError(
            f"--inherit: the student {recipe.model.name} has been trained, and would lose it; give HEAD:BACKBONE, or no --inherit"
        )


@dataclass(frozen=True)
class Job:
    """A recipe as objects. model: what the student is, HEAD:BACKBONE and all. folder: where it goes."""

    recipe: Recipe
    model: ModelConfig
    data: Data
    distillation: Distillation
    teacher: Detector | None
    folder: Path

    def run(self, *, resume: bool, overwrite: bool, console: Console | None) -> Outcome:
        """Train, save, measure. A finished run that is resumed says so and is left as it is."""
        recipe, say = self.recipe, talker(console)
        run = RunFolder(self.folder)
        if resume and run.finished and _comparable(run.recipe()) == _comparable(recipe):
            say(f"{self.folder}: this run is finished; nothing is done again")
            return Outcome(self.folder, run.metrics())
        split = self.data.evaluation_split(recipe.data)  # before the first step, as it may not be there
        training = self.data.training_split(recipe.data)
        loader = TrainLoader(training, recipe.data, **shares(recipe.train), seed=recipe.train.seed)
        if not resume:
            run.begin(recipe, overwrite=overwrite)
        say(f"training {recipe.model.name} on {training.name} ({len(training)} images), into {self.folder}")
        shared = recipe.model_dump(mode="json", include={"model", "data", "methods"}) | {
            "teacher": digest(self.teacher)
        }
        shared |= {"inherit": recipe.teacher.inherit} if recipe.teacher.inherit else {}
        summary = fit(
            self.distillation,
            loader,
            teacher=self.teacher,
            config=recipe.train,
            out=self.folder,
            resume=resume,
            console=console or Console(quiet=True),
            fingerprint=shared,
        )
        if is_main():  # before measuring: a test picture that can't be read must not cost the training
            run.save(
                self.distillation.student,
                Card(model=self.model, **_labels(self.data), image_size=recipe.data.image_size),
            )
        metrics, results = measure(self.distillation.student, self.data, split, recipe.data, recipe.train)
        metrics |= {"train_seconds": summary.train_seconds, "images_per_second": summary.images_per_second}
        metrics |= {"peak_memory_bytes": summary.peak_memory_bytes}
        if is_main():
            run.end(recipe, metrics, results)
        return Outcome(self.folder, metrics)


def check_teacher(teacher: Detector, data: Data, recipe: Recipe, *, read: bool, say: Say) -> None:
    """Tell the teacher's AP on a sample: of the val split where there is one, else of the training images; never of the test split.

    read: its predictions are learned from, so below `teacher.floor` UserError is raised. A teacher of other classes can't be measured.
    """
    config = recipe.teacher
    if config.sample == 0:
        return
    if not teacher.info.classes:
        say("teacher: it gives features and detects nothing, so there is no AP to measure")
        return
    if teacher.info.classes != data.classes:
        say("teacher: it knows other classes than the data, so its AP here is not measured")
        return
    val = next((data.splits[name] for name in ("val", "valid") if name in data.splits), None)
    split = (val or data.training_split(recipe.data)).take(config.sample)
    place(teacher, recipe.train.device)
    found, _ = measure(teacher, data, split, recipe.data, recipe.train, costs=False)
    seen = {record.name for record in data.training_split(recipe.data).records} & {
        record.name for record in split.records
    }
    known = f", {len(seen)} of them among the student's training images" if seen else ""
    say(
        f"teacher: AP {number(found['AP'])}, AP50 {number(found['AP50'])} on {len(split)} images of the {split.name} split{known}"
    )
    if read and not config.allow_weak and found["AP"] is not None and found["AP"] < config.floor:
        raise UserError(
            f"teacher {config.path}: its AP of {found['AP']:.1f} is below teacher.floor {config.floor:g}: is it trained, and on these classes? "
            "Lower --teacher.floor, or go on with it by --teacher.allow-weak"
        )


def digest(teacher: Detector | None) -> str | None:
    """A short name for exactly these weights: a run is not resumed under another teacher at the same path."""
    if teacher is None:
        return None
    found = hashlib.sha256()
    for name, value in teacher.state_dict().items():
        found.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _begin(recipe: Recipe, out: Path | None, resume: bool, overwrite: bool) -> tuple[Recipe, Path]:
    """What can be said without data: the architecture of a run folder, the run's own folder, device and precision."""
    recipe = recipe.model_copy(update={"model": adopt(recipe.model)})
    folder = choose(out, _name(recipe), resume=resume, overwrite=overwrite)
    read = [
        path
        for path in (recipe.model.name, recipe.teacher.path)
        if is_run(path) and Path(path).resolve() == folder.resolve()
    ]
    if read:
        raise UserError(f"--out {folder}: the run would write over the model it reads; name another folder")
    open_accelerator(recipe.train)  # raises UserError on an impossible one; under torchrun the processes meet here
    return recipe, folder


def _name(recipe: Recipe) -> str:
    """Of the default folder: runs/gfl-resnet18, runs/gfl-resnet18-pkd-crosskd."""
    parts = [Path(recipe.model.name).name, *recipe.methods]
    return re.sub(r"[^A-Za-z0-9_.]+", "-", "-".join(parts)).strip("-") or "run"


def open_with_notes(recipe: Recipe, say: Say) -> Data:
    """The data, and what is worth telling of them."""
    data = open_data(recipe.data)
    for note in data.notes:
        say(note)
    return data


def _labels(data: Data) -> dict[str, Any]:
    return {"classes": data.classes, "category_ids": data.category_ids}


def _comparable(recipe: Recipe | None) -> dict[str, Any] | None:
    return None if recipe is None else recipe.model_dump(mode="json", exclude=FREE)
