"""What `train`, `distill` and `compare` set up alike: recipe and folder, data, student, teacher and methods."""

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detdistill.data import Data, Split, open_data
from detdistill.detectors.inherit import inherit
from detdistill.engine.device import open_accelerator
from detdistill.engine.trackers import check_trackers
from detdistill.errors import UserError
from detdistill.methods import Method
from detdistill.recipe import ModelConfig, Recipe
from detdistill.run.batch_size import check_batch_size
from detdistill.run.defaults import other_size, shown, with_image_size, with_levels
from detdistill.run.evaluating import measure
from detdistill.run.folder import RunFolder, choose_folder, is_run
from detdistill.run.models import adopt, check_not_set, find, place, start
from detdistill.run.pairing import Options, build_methods, check_methods, resolve
from detdistill.run.splits import stored_splits, training_images
from detdistill.run.tables import Say, number
from detdistill.types import Detector

RESULT_FREE = {
    "train": {"device", "workers", "log_every", "log_gradients", "checkpoint_every", "trackers"},
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
    check_not_set(recipe.teacher.path, recipe.teacher.model)
    teacher, report = find(recipe.teacher.path, classes, recipe.teacher.model)
    say(f"teacher: {report}")
    student, model = start(adopt(recipe.model), classes, recipe.train.seed, say)
    if inherit_parts:
        for line in inherit(student, teacher, recipe.teacher.inherit):
            say(line)
    return Pair(student, model, teacher)


def begin(recipe: Recipe, out: Path | None, say: Say, *, resume: bool, overwrite: bool) -> tuple[Recipe, Path]:
    """The recipe with the architecture of its model and the levels of its teacher, and the folder of the run.

    No data is read and nothing is written.

    Raises UserError for a folder that can't be used, an impossible device or precision, or a run that would overwrite
    its own model.
    """
    recipe = with_levels(recipe, say)
    recipe = recipe.model_copy(update={"model": adopt(recipe.model)})
    folder = choose_folder(out, _default_name(recipe), resume=resume, overwrite=overwrite)
    for path in (recipe.model.name, recipe.teacher.path):
        if is_run(path) and Path(path).resolve() == folder.resolve():
            raise UserError(f"--out {folder}: the run would overwrite the model it reads; choose another folder")
    check_batch_size(recipe)
    check_trackers(recipe.train.trackers)
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


def open_with_notes(recipe: Recipe, say: Say) -> tuple[Data, Recipe]:
    """The data of the recipe, and the recipe with an image size; notes about both are printed."""
    data = open_data(recipe.data)
    for note in data.notes:
        say(note)
    return data, with_image_size(recipe, data, say)


def check_teacher(teacher: Detector, data: Data, recipe: Recipe, *, predictions_are_read: bool, say: Say) -> None:
    """Print the teacher's AP on a sample of images, never of the test split; see `teacher_sample`.

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
    split, note = teacher_sample(data, recipe)
    place(teacher, recipe.train.device)
    metrics, _ = measure(teacher, data, split, recipe.data, recipe.train, costs=False)
    average, at_50 = number(metrics["AP"]), number(metrics["AP50"])
    say(f"teacher: AP {average}, AP50 {at_50} on {len(split)} images of the {split.name} split, {note}")
    if predictions_are_read and not config.allow_weak and metrics["AP"] is not None and metrics["AP"] < config.floor:
        measured = f"its AP of {metrics['AP']:.1f}{_at_size(recipe)} is below teacher.floor {config.floor:g}"
        remedy = "To continue anyway, lower --teacher.floor or set --teacher.allow-weak"
        raise UserError(f"teacher {config.path}: {measured}; check that it is trained, and on these classes. {remedy}")


def _at_size(recipe: Recipe) -> str:
    """The image size in words if it differs from the teacher's, as a possible reason for a low AP."""
    if (trained := other_size(recipe)) is None:
        return ""
    return f" at image size {shown(recipe.data.image_size)} (it was trained on {shown(trained)})"


def teacher_sample(data: Data, recipe: Recipe) -> tuple[Split, str]:
    """The images on which the teacher is measured, and what is known of them, in words.

    They are images of the val split that neither the student nor the teacher trains on; without any, images of the val
    split, or of the training split. Which images a teacher was trained on is known of a run folder on the same data.
    """
    count, training = recipe.teacher.sample, data.training_split(recipe.data)
    evaluated = data.evaluation_split(recipe.data)
    val = data.find("val") or training
    seen = _images_of_teacher(data, recipe)
    known = {record.name for record in training.records} | (seen or set())
    held_out = tuple(record for record in val.records if record.name not in known)
    if held_out and val is not training:
        measured = "on which the student is measured, too" if val is evaluated else "held out"
        source = "" if seen is not None else "; which images the teacher was trained on is not known"
        return replace(val, records=held_out).take(count), f"{measured}{source}"
    split = val.take(count)
    owner = "teacher" if seen and all(record.name in seen for record in split.records) else "student"
    problem = f"no image is held out: the {owner} is trained on them"
    return split, problem + (", so this AP is too high" if owner == "teacher" else "")


def _images_of_teacher(data: Data, recipe: Recipe) -> set[str] | None:
    """Names of the images that the teacher was trained on; None if they are not known.

    They are known of a run folder that stores its splits, or whose recipe names the same data as this run.
    """
    if not is_run(recipe.teacher.path):
        return None
    folder = Path(recipe.teacher.path)
    if stored_splits(folder):
        return training_images(folder)
    trained = RunFolder(folder).recipe()
    places = ("path", "train", "val", "test")
    if trained is None or any(getattr(trained.data, name) != getattr(recipe.data, name) for name in places):
        return None
    return {record.name for record in data.training_split(trained.data).records}


def digest(teacher: Detector | None) -> str | None:
    """A short hash of the teacher's weights, so that a run is not resumed with other weights under the same path."""
    if teacher is None:
        return None
    sha = hashlib.sha256()
    for name, value in teacher.state_dict().items():
        sha.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]
