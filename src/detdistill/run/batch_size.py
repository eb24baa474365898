"""`--batch-size auto`: the largest batch that fits into the memory of the GPU."""

from pathlib import Path

from detdistill.data import Data
from detdistill.distributed import world_size
from detdistill.engine.device import find_device
from detdistill.engine.distillation import Distillation
from detdistill.engine.memory import crowded_batch, free_memory, step_fits
from detdistill.engine.resources import largest_batch
from detdistill.errors import UserError
from detdistill.recipe import Recipe
from detdistill.run.folder import RunFolder
from detdistill.run.tables import Say
from detdistill.types import Detector

STEPS = 10  # an epoch keeps at least this many, so that a small data set is not one batch


def check_batch_size(recipe: Recipe) -> None:
    """Raises UserError if the batch size is `auto` and this can't be chosen here."""
    if recipe.train.batch_size != "auto":
        return
    if find_device(recipe.train.device).type != "cuda":
        raise UserError("--batch-size auto needs a GPU of NVIDIA or AMD, whose memory is measured; give a number")
    if world_size() > 1:
        raise UserError("--batch-size auto works with one process; under torchrun give a number")


def with_batch_size(
    recipe: Recipe, distillation: Distillation, teacher: Detector | None, data: Data, folder: Path, say: Say
) -> Recipe:
    """The recipe with a number for `--batch-size auto`: that of the run in `folder` if there is one, or else the
    largest of 1, 2, 3, 4, 6, 8, 12, ... (times `train.accumulate`) that fits into memory and leaves ten steps an epoch.

    Raises UserError if not even one image fits.
    """
    if recipe.train.batch_size != "auto":
        return recipe
    stored = RunFolder(folder).recipe()
    if stored is not None:
        return _with_number(recipe, stored.train.images_per_step)
    training = data.training_split(recipe.data)
    available = free_memory(find_device(recipe.train.device))

    def fits(count: int) -> bool:
        batch, targets = crowded_batch(training.records, recipe.data, count)
        return step_fits(distillation, teacher, batch, targets, recipe.train, available)

    smallest = recipe.train.accumulate
    most = max(len(training) // STEPS, smallest)
    size = largest_batch(fits, most, smallest)
    if size is None:
        problem = "--batch-size auto: not even one image fits into the memory of the GPU"
        raise UserError(f"{problem}; try a smaller --image-size")
    reason = "as much as fits into memory"
    if 2 * size > most:
        reason = f"so that {len(training)} images give at least {STEPS} steps an epoch"
    say(f"batch size: {size}, {reason}; the learning rate stays {recipe.train.lr:g}")
    return _with_number(recipe, size)


def _with_number(recipe: Recipe, size: int) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"batch_size": size})})
