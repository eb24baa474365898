"""A batch of the run for measurements, and how long its images take to be read."""

import statistics
from dataclasses import dataclass
from itertools import islice
from typing import cast

from detdistill.data import Data, EvalLoader, TrainLoader, open_data
from detdistill.data.examples import CACHE, Examples
from detdistill.data.transforms import canvas_size
from detdistill.engine.micro import check_accumulate
from detdistill.engine.resources import worker_count
from detdistill.inspection.estimate import Loading
from detdistill.inspection.probe import Clock
from detdistill.recipe import DataConfig, Recipe
from detdistill.types import Batch, Targets

BATCHES = 3  # that are read


@dataclass(frozen=True)
class Fed:
    """A batch with its targets, and the time that a batch takes to be read."""

    batch: Batch
    targets: Targets
    loading: Loading


def feed(recipe: Recipe, data: Data | None, classes: int, clock: Clock) -> Fed:
    """A batch of the training images, or of built-in images of the same size if there are no data.

    Of the batches that are read, it is the one of median size that has objects. classes: the number of classes.
    Raises UserError if an image can't be read, or if the batch size does not fit the data.
    """
    train = recipe.train
    if data is None:
        return _built_in(recipe, classes)
    training = data.training_split(recipe.data)
    check_accumulate(min(train.images_per_step, len(training)), 1, train.accumulate)
    loader = TrainLoader(
        training, recipe.data, batch_size=train.images_per_step, seed=train.seed, epochs=train.epochs, workers=0
    )
    times: list[list[float]] = []
    pairs: list[tuple[Batch, Targets]] = []
    for _ in range(2):
        begin, passed = clock(), []
        for pair in islice(loader.epoch(0), BATCHES):
            passed.append(clock() - begin)
            pairs.append(pair)
            begin = clock()
        times.append(passed)
    cache = cast(Examples, loader.feed.loader.dataset).cache.values()
    size = sum(image.nbytes for image in cache) / max(len(cache), 1)
    cached = min(1.0, CACHE / (size * len(training))) if size else 0.0
    first, again = (statistics.median(passed) for passed in times)
    filled = [pair for pair in pairs if any(len(labels) for labels in pair[1].labels)] or pairs
    filled.sort(key=lambda pair: pair[0].images.numel())
    batch, targets = filled[len(filled) // 2]
    return Fed(batch, targets, Loading(first, again, cached, worker_count(train)))


def _built_in(recipe: Recipe, classes: int) -> Fed:
    """A batch of built-in images of the run's size, which takes no time to be read. classes: their labels are below."""
    count = recipe.train.images_per_step
    config = DataConfig(path=f"shapes:{max(count, 4)}", image_size=canvas_size(recipe.data))
    batch, targets = next(iter(EvalLoader(open_data(config).split("train"), config, batch_size=count)))
    labels = tuple(labels % classes for labels in targets.labels)
    return Fed(batch, Targets(targets.boxes, labels), Loading(0.0, 0.0, 1.0))
