"""What `train`, `distill` and `compare` set up alike: recipe and folder, data, student, teacher and methods."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detdistill.data import Data, open_data
from detdistill.detectors.inherit import inherit
from detdistill.engine.device import open_accelerator
from detdistill.errors import UserError
from detdistill.methods import Method
from detdistill.recipe import ModelConfig, Recipe
from detdistill.run.evaluating import measure
from detdistill.run.folder import choose_folder, is_run
from detdistill.run.models import adopt, find, place, start
from detdistill.run.pairing import Options, build_methods, check_methods, resolve
from detdistill.run.tables import Say, number
from detdistill.types import Detector

RESULT_FREE = {
    "train": {"device", "workers", "log_every", "log_gradients", "checkpoint_every"},
    "teacher": {"sample", "floor", "allow_weak"},
}
"""Fields of a recipe that do not change the result of a run."""


@dataclass(frozen=True)
class Pair:
    """A student and its teacher. model: the student's config, as HEAD:BACKBONE."""

    student: Detector
    model: ModelConfig
    teacher: Detector

    def methods(self, options: Options) -> tuple[dict[str, dict[str, Any]], list[Method]]:
        """The resolved options of the methods, and the methods. Raises UserError if one can't serve this pair."""
        resolved = resolve(options, self.student.info, self.teacher.info)
        return resolved, build_methods(resolved, self.student.info, self.teacher.info)


def make_pair(recipe: Recipe, classes: tuple[str, ...], say: Say, *, inherit_parts: bool = True) -> Pair:
    """The student and the teacher of a recipe, for the classes of the data.

    The student starts from the recipe's seed, and takes over the parts of `teacher.inherit` unless `inherit_parts` is
    False (a run that is resumed). Raises UserError if a model can't be found, built or loaded.
    """
    teacher, report = find(recipe.teacher.path, classes, recipe.teacher.model)
    say(f"teacher: {report}")
    student, model = start(adopt(recipe.model), classes, recipe.train.seed, say)
    if inherit_parts:
        for line in inherit(student, teacher, recipe.teacher.inherit):
            say(line)
    return Pair(student, model, teacher)


def begin(recipe: Recipe, out: Path | None, *, resume: bool, overwrite: bool) -> tuple[Recipe, Path]:
    """The recipe with the architecture of its model, and the folder of the run, before any data is read. Nothing is
    written.

    Raises UserError for a folder that can't be used, an impossible device or precision, or a run that would overwrite
    its own model.
    """
    recipe = recipe.model_copy(update={"model": adopt(recipe.model)})
    folder = choose_folder(out, _default_name(recipe), resume=resume, overwrite=overwrite)
    for path in (recipe.model.name, recipe.teacher.path):
        if is_run(path) and Path(path).resolve() == folder.resolve():
            raise UserError(f"--out {folder}: the run would overwrite the model it reads; choose another folder")
    open_accelerator(recipe.train)  # under torchrun, the processes meet here
    return recipe, folder


def _default_name(recipe: Recipe) -> str:
    """Name of the default folder, such as gfl-resnet18-pkd-crosskd."""
    parts = [Path(recipe.model.name).name, *recipe.methods]
    return re.sub(r"[^A-Za-z0-9_.]+", "-", "-".join(parts)).strip("-") or "run"


def check_recipe(recipe: Recipe) -> None:
    """Check a distillation without data or teacher. Raises UserError."""
    if not recipe.methods:
        raise UserError(
            "no method: give --method, such as pkd,crosskd (`detdistill list methods`), or use `detdistill train`"
        )
    check_methods(recipe.methods)
    if recipe.teacher.inherit and is_run(recipe.model.name):
        raise UserError(
            f"--inherit: the student {recipe.model.name} is already trained and would lose its weights; give "
            "HEAD:BACKBONE, or "
            "leave out --inherit"
        )


def open_with_notes(recipe: Recipe, say: Say) -> Data:
    """The data of the recipe; notes about it are printed."""
    data = open_data(recipe.data)
    for note in data.notes:
        say(note)
    return data


def check_teacher(teacher: Detector, data: Data, recipe: Recipe, *, predictions_are_read: bool, say: Say) -> None:
    """Print the teacher's AP on a sample of images: of the val split, or else of the training split, never of the test
    split.

    A teacher of features, or of other classes, can't be measured. Raises UserError if methods read the teacher's
    predictions and its AP is below `teacher.floor`, unless `teacher.allow_weak` is set.
    """
    config = recipe.teacher
    if config.sample == 0:
        return
    if not teacher.info.classes:
        say("teacher: it gives features and detects nothing, so its AP is not measured")
        return
    if teacher.info.classes != data.classes:
        say("teacher: its classes differ from those of the data, so its AP is not measured")
        return
    training = data.training_split(recipe.data)
    val = data.find("val")
    split = (val or training).take(config.sample)
    place(teacher, recipe.train.device)
    metrics, _ = measure(teacher, data, split, recipe.data, recipe.train, costs=False)
    shared = {record.name for record in training.records} & {record.name for record in split.records}
    note = f", {len(shared)} of them also training images of the student" if shared else ""
    average, at_50 = number(metrics["AP"]), number(metrics["AP50"])
    say(f"teacher: AP {average}, AP50 {at_50} on {len(split)} images of the {split.name} split{note}")
    if predictions_are_read and not config.allow_weak and metrics["AP"] is not None and metrics["AP"] < config.floor:
        raise UserError(
            f"teacher {config.path}: its AP of {metrics['AP']:.1f} is below teacher.floor {config.floor:g}; check that "
            "it is trained, "
            "and on these classes. To continue anyway, lower --teacher.floor or set --teacher.allow-weak"
        )


def digest(teacher: Detector | None) -> str | None:
    """A short hash of the teacher's weights, so that a run is not resumed with other weights under the same path."""
    if teacher is None:
        return None
    sha = hashlib.sha256()
    for name, value in teacher.state_dict().items():
        sha.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]
