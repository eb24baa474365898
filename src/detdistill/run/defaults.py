"""Defaults of a run that follow from its teacher, its data and its device.

They apply to fields that neither the recipe nor a flag sets. Each is printed in one line and stored in the recipe of
the run, so that the run can be repeated as it was.
"""

import statistics
from pathlib import Path

from detdistill.data import Data
from detdistill.data.transforms import canvas_size, sides
from detdistill.detectors.build import build, with_defaults
from detdistill.detectors.registry import DETECTORS
from detdistill.engine.device import find_device
from detdistill.errors import UserError
from detdistill.exporting.runtime import ExportedDetector, is_exported
from detdistill.recipe import DataConfig, ModelConfig, Recipe
from detdistill.run.folder import RunFolder, is_run
from detdistill.run.tables import Say
from detdistill.types import MULTIPLE

CPU_SIDE = 320  # pixels; of this size a CPU trains on a few images per second, and of 640 on less than one
TORCHVISION_KINDS = {
    "retinanet": "retinanet",
    "fcos": "fcos",
    "fasterrcnn": "faster_rcnn",
    "maskrcnn": "mask_rcnn",
}  # our name of the head, by the first word of a torchvision detector

Size = int | tuple[int, int]


def with_levels(recipe: Recipe, say: Say) -> Recipe:
    """The recipe with the strides of the teacher's levels, if the student does not set its own and can have them.

    A student can have them if its head is of the teacher's kind and its backbone has maps of these strides.
    """
    model, levels = recipe.model, _teacher_levels(recipe)
    if levels is None or is_run(model.name) or "strides" in model.model_fields_set or not model.name:
        return recipe
    kind, strides = levels
    own = with_defaults(model).strides
    if strides == own or not _same_levels(model.name.partition(":")[0], kind):
        return recipe
    adopted = model.model_copy(update={"strides": strides})
    if not _can_be_built(adopted):
        say(f"levels: the student can't have the teacher's strides {_text(strides)}, so it keeps {_text(own)}")
        return recipe
    say(f"levels: strides {_text(strides)}, as the teacher's; others with --model.strides")
    return recipe.model_copy(update={"model": adopted})


def with_image_size(recipe: Recipe, data: Data, say: Say) -> Recipe:
    """The recipe with the image size of the teacher, or of the run folder that training continues from.

    Without either, training on a CPU gets images of at most 320 pixels. A size that the recipe sets is kept; if it
    differs from the teacher's, a line says so.
    """
    config = recipe.data
    if "image_size" in config.model_fields_set:
        if (trained := other_size(recipe)) is not None:
            sizes = f"{shown(config.image_size)}, but the teacher was trained on {shown(trained)}"
            say(f"image size: {sizes}; its predictions may be worse")
        return recipe
    of_teacher, of_model = saved_size(recipe.teacher.path), saved_size(recipe.model.name)
    size: Size = config.image_size
    if of_teacher is not None:
        size, reason = of_teacher, "as the teacher's"
    elif of_model is not None:
        size, reason = of_model, f"as in {recipe.model.name}"
    elif find_device(recipe.train.device).type == "cpu":
        size = min(canvas_size(config)[0], CPU_SIDE, _typical_side(data))
        reason = "because this machine trains on its CPU"
    if size == config.image_size:
        return recipe
    say(f"image size: {shown(size)}, {reason}; another with --image-size")
    return recipe.model_copy(update={"data": config.model_copy(update={"image_size": size})})


def with_saved_data(config: DataConfig, model: str | Path) -> DataConfig:
    """The config with the data, splits and image size of the run folder `model`, where the config sets nothing itself.

    If the config names other data, only the image size is taken. A folder that holds only a detector has no data.
    """
    if not is_run(model):
        return config
    run = RunFolder(Path(model))
    taken: dict[str, object] = {"image_size": run.card().image_size}
    recipe = run.recipe()
    if recipe is not None and not {"path", "train", "val", "test"} & config.model_fields_set:
        taken |= {name: getattr(recipe.data, name) for name in DataConfig.model_fields if name != "image_size"}
    kept = {name: value for name, value in taken.items() if name not in config.model_fields_set}
    return config.model_copy(update=kept)


def with_known_size(config: DataConfig, model: str | Path, say: Say) -> DataConfig:
    """The config for a detector that is not trained here. Raises UserError if its image size can't be known.

    A run folder and an exported file store the size. Published weights are used at the default size, which a line says.
    A state dict was trained at a size that only the user knows.
    """
    if "image_size" in config.model_fields_set:
        return config
    if is_exported(model):
        return config.model_copy(update={"image_size": ExportedDetector(Path(model)).card.image_size})
    if "=" in str(model):
        raise UserError(
            f"--model {model}: the file does not hold the image size it was trained with; give --image-size"
        )
    say(f"image size: {shown(config.image_size)}, the default; another with --image-size")
    return config


def saved_size(model: str) -> Size | None:
    """The image size that the run folder `model` was trained with, or None if it is not a run folder."""
    return RunFolder(Path(model)).card().image_size if is_run(model) else None


def other_size(recipe: Recipe) -> Size | None:
    """The image size of a teacher that was trained on another size than this run, or None."""
    trained = saved_size(recipe.teacher.path)
    return None if trained is None or sides(trained) == canvas_size(recipe.data) else trained


def shown(size: Size) -> str:
    """An image size in words."""
    height, width = sides(size)
    return f"{height} x {width}"


def _teacher_levels(recipe: Recipe) -> tuple[str, tuple[int, ...]] | None:
    """Head and strides of the teacher; None if there is none or they are not known before it is loaded."""
    path = recipe.teacher.path
    if is_run(path):
        model = RunFolder(Path(path)).card().model
    elif path.startswith("torchvision:"):
        from detdistill.detectors.weights import TORCHVISION

        name = path.removeprefix("torchvision:").partition("=")[0]
        kind = TORCHVISION_KINDS.get(name.partition("_")[0])
        return None if kind is None or name not in TORCHVISION else (kind, TORCHVISION[name].strides)
    else:
        model = recipe.teacher.model.model_copy(update={"name": path.partition("=")[0]})
    kind = model.name.partition(":")[0]
    return (kind, with_defaults(model).strides) if kind in DETECTORS else None


def _same_levels(student: str, teacher: str) -> bool:
    """True if detectors with these heads are usually built on the same levels."""
    if student not in DETECTORS or DETECTORS[student].group != DETECTORS[teacher].group:
        return False
    return DETECTORS[student].group != "queries" or DETECTORS[student].strides == DETECTORS[teacher].strides


def _can_be_built(model: ModelConfig) -> bool:
    """True if head and backbone accept the config."""
    try:
        build(model.model_copy(update={"backbone_weights": "none"}), ("class",))
    except UserError:
        return False
    return True


def _typical_side(data: Data) -> int:
    """The median of the images' longer sides, rounded up to a multiple of 32."""
    longer = [max(record.height, record.width) for split in data.splits.values() for record in split.records]
    return -(-round(statistics.median(longer)) // MULTIPLE) * MULTIPLE


def _text(strides: tuple[int, ...]) -> str:
    return ",".join(map(str, strides))
