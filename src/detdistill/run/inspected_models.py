"""The models of `inspect`, as a run would make them. A new student gets random weights, so nothing is downloaded."""

from dataclasses import dataclass
from pathlib import Path

from detdistill.data import Data
from detdistill.errors import UserError, plural
from detdistill.inspection.estimate import Schedule
from detdistill.recipe import ModelConfig, Recipe
from detdistill.run.defaults import saved_size, shown, with_levels
from detdistill.run.folder import RunFolder, is_run
from detdistill.run.models import adopt, check_not_set, find, start
from detdistill.run.setup import open_with_notes
from detdistill.run.tables import Say
from detdistill.types import Detector

UNKNOWN = 80  # classes of a student if neither data nor a teacher name any; as many as COCO has


@dataclass(frozen=True)
class Models:
    """A student, a teacher, or both.

    recipe: with the architecture of its model, its levels and its image size. model: the student's config, as
    HEAD:BACKBONE. data: None if the recipe names none.
    """

    recipe: Recipe
    student: Detector | None
    model: ModelConfig | None
    teacher: Detector | None
    data: Data | None

    @property
    def schedule(self) -> Schedule | None:
        """The length of the run; None without data. Raises UserError if a split is missing."""
        if self.data is None:
            return None
        train = self.recipe.train
        images = len(self.data.training_split(self.recipe.data))
        per_epoch = max(images // train.images_per_step, 1)
        steps = min(per_epoch * train.epochs, train.max_steps or per_epoch * train.epochs)
        return Schedule(steps, per_epoch, len(self.data.evaluation_split(self.recipe.data)), self.recipe.teacher.sample)


def open_models(recipe: Recipe, say: Say) -> Models:
    """The models that the recipe names, and its data if it names any.

    Raises UserError if no model is named, if one can't be found, built or loaded, if the training images have no
    objects, or if the image size is not known.
    """
    if not recipe.model.name and not recipe.teacher.path:
        raise UserError("no model: give --student, --teacher or both, such as --student gfl:resnet18")
    _check_complete(recipe.teacher.path)
    check_not_set(recipe.teacher.path, recipe.teacher.model)
    if recipe.model.name:
        recipe = with_levels(recipe, say)
        recipe = recipe.model_copy(update={"model": adopt(recipe.model)})
    data, recipe = _open_data(recipe, say)
    classes = () if data is None else data.classes
    teacher = None
    if recipe.teacher.path:
        teacher, report = find(recipe.teacher.path, classes or _classes(recipe.model.name), recipe.teacher.model)
        say(f"teacher: {report}")
    if not recipe.model.name:
        return Models(recipe, None, None, teacher, data)
    classes = classes or _classes(recipe.model.name) or (teacher.info.classes if teacher is not None else ())
    if not classes:
        say(f"classes: not known without --data; {UNKNOWN} are assumed")
        classes = tuple(f"class {number}" for number in range(1, UNKNOWN + 1))
    student, model = start(recipe.model, classes, recipe.train.seed, say, with_weights=False)
    return Models(recipe, student, model, teacher, data)


def _open_data(recipe: Recipe, say: Say) -> tuple[Data | None, Recipe]:
    """The data of the recipe, or None if it names none, and the recipe with an image size."""
    config = recipe.data
    if config.path or config.train is not None:
        data, recipe = open_with_notes(recipe, say)
        training = data.training_split(recipe.data)
        if not any(len(record.labels) for record in training.records):
            problem = f"none of its {plural(len(training), 'image')} of the split {training.name} has an object"
            raise UserError(f"--data {config.path}: {problem}, so no training step can be measured; give labeled data")
        return data, recipe
    size = saved_size(recipe.teacher.path) or saved_size(recipe.model.name)
    if "image_size" in config.model_fields_set:
        return None, recipe
    if size is None:
        raise UserError("image size: it is not known without data or a run folder; give --image-size or --data")
    say(f"image size: {shown(size)}, as the run folder's; another with --image-size")
    return None, recipe.model_copy(update={"data": config.model_copy(update={"image_size": size})})


def _classes(model: str) -> tuple[str, ...]:
    """The classes of a run folder; empty for another model."""
    return RunFolder(Path(model)).card().classes if is_run(model) else ()


def _check_complete(path: str) -> None:
    """Raises UserError if the teacher is the folder of a run that has not saved its model."""
    folder = RunFolder(Path(path)) if path else None
    if folder is not None and folder.path.is_dir() and not is_run(path) and folder.recipe() is not None:
        state = folder.path / "checkpoint" / "state.pt"
        remedy = f"finish it with --resume --out {path}"
        if state.is_file():
            remedy += f", or give HEAD:BACKBONE={state}"
        raise UserError(f"--teacher {path}: the run did not finish, so it has no model.json; {remedy}")
