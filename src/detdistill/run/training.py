"""`train` and `distill`: a recipe becomes objects, and they run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from detdistill.data import Data, Split, TrainLoader
from detdistill.detectors.registry import DETECTORS
from detdistill.distributed import is_main
from detdistill.engine.advice import about_rate
from detdistill.engine.distillation import Distillation
from detdistill.engine.fit import FitSummary, fit
from detdistill.engine.micro import check_accumulate
from detdistill.engine.trackers import FINAL, Trackers
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig, Recipe
from detdistill.run.batch_size import with_batch_size
from detdistill.run.evaluating import loader_options, measure
from detdistill.run.folder import ModelCard, RunFolder
from detdistill.run.models import start
from detdistill.run.pairing import schedules
from detdistill.run.reporting import report_at_end
from detdistill.run.setup import (
    RESULT_FREE,
    begin,
    check_recipe,
    check_teacher,
    digest,
    make_pair,
    open_with_notes,
)
from detdistill.run.splits import check_splits, keep_splits, trained_on
from detdistill.run.tables import printer
from detdistill.types import Detector


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
    page: bool = True,
    console: Console | None = None,
) -> Outcome:
    """Train `recipe.model` on `recipe.data` without a teacher. Raises UserError before anything is written.

    page: write report.html, too, if that takes no more than a few seconds.
    """
    if recipe.methods:
        names = ", ".join(recipe.methods)
        raise UserError(f"the recipe has methods ({names}): use `detdistill distill`, or remove them")
    say = printer(console)
    recipe, folder = begin(recipe, out, say, resume=resume, overwrite=overwrite)
    data, recipe = open_with_notes(recipe, say)
    student, model = start(recipe.model, data.classes, recipe.train.seed, say)
    distillation = Distillation(student)
    recipe = with_batch_size(recipe, distillation, None, data, folder, say)
    job = Job(recipe, model, data, folder, page, console)
    if resume and job.is_finished():
        return job.outcome()
    loader = job.prepare(resume=resume, overwrite=overwrite)
    return job.finish(student, job.fit(distillation, loader, None, resume))


def distill(
    recipe: Recipe,
    out: Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    page: bool = True,
    console: Console | None = None,
) -> Outcome:
    """Train `recipe.model` with the labels and with `recipe.methods`, which learn from `recipe.teacher`.

    page: write report.html, too, if that takes no more than a few seconds. Raises UserError before anything is written.
    """
    check_recipe(recipe)
    say = printer(console)
    recipe, folder = begin(recipe, out, say, resume=resume, overwrite=overwrite)
    data, recipe = open_with_notes(recipe, say)
    pair = make_pair(
        recipe, data.classes, say, inherit_parts=not resume
    )  # a checkpoint already holds what was inherited
    options, methods = pair.methods(recipe.methods)
    recipe = recipe.model_copy(update={"methods": options})
    distillation = Distillation(pair.student, methods, schedules(options), recipe.train.balance_every)
    recipe = with_batch_size(recipe, distillation, pair.teacher, data, folder, say)
    check_teacher(pair.teacher, data, recipe, predictions_are_read=distillation.need.head, say=say)
    if (warning := trained_on(Path(recipe.teacher.path), data, data.evaluation_split(recipe.data))) is not None:
        say(warning)
    job = Job(recipe, pair.model, data, folder, page, console)
    if resume and job.is_finished():
        return job.outcome()
    loader = job.prepare(resume=resume, overwrite=overwrite)
    return job.finish(pair.student, job.fit(distillation, loader, pair.teacher, resume))


@dataclass(frozen=True)
class Job:
    """What surrounds the training loop: the folder before it, weights and metrics after it.

    model: the student's config, as HEAD:BACKBONE. page: also write report.html.
    """

    recipe: Recipe
    model: ModelConfig
    data: Data
    folder: Path
    page: bool
    console: Console | None

    @property
    def run(self) -> RunFolder:
        """The folder as a run."""
        return RunFolder(self.folder)

    def fit(
        self, distillation: Distillation, loader: TrainLoader, teacher: Detector | None, resume: bool
    ) -> FitSummary:
        """Run the training loop. A new run that fails before its first step is complete leaves no folder behind."""
        try:
            return fit(
                distillation,
                loader,
                teacher=teacher,
                config=self.recipe.train,
                out=self.folder,
                resume=resume,
                console=self.console or Console(quiet=True),
                fingerprint=self.fingerprint(teacher),
            )
        except Exception:
            if not resume and is_main() and not self.run.has_steps:
                self.run.clear()
            raise

    @property
    def splits(self) -> tuple[Split, Split]:
        """The training and the evaluation split. Raises UserError if one does not exist."""
        return self.data.training_split(self.recipe.data), self.data.evaluation_split(self.recipe.data)

    def is_finished(self) -> bool:
        """True if the run in the folder is finished and has the same settings; the user is told so."""
        stored = self.run.recipe()
        if not self.run.finished or stored is None or _settings(stored) != _settings(self.recipe):
            return False
        printer(self.console)(f"{self.folder}: this run is finished; nothing is left to do")
        return True

    def outcome(self) -> Outcome:
        """The outcome of a finished run."""
        return Outcome(self.folder, self.run.metrics())

    def prepare(self, *, resume: bool, overwrite: bool) -> TrainLoader:
        """The training images. Creates the folder of a new run. Raises UserError if a split is missing, before anything
        is written.
        """
        training, _ = self.splits
        recipe = self.recipe
        options = loader_options(recipe.train)
        images = min(recipe.train.images_per_step, len(training))
        check_accumulate(images, options.get("processes", 1), recipe.train.accumulate)
        loader = TrainLoader(training, recipe.data, **options, seed=recipe.train.seed, epochs=recipe.train.epochs)
        if resume:
            check_splits(self.data, self.folder)
        else:
            self.run.begin(recipe, overwrite=overwrite)
            if is_main():
                keep_splits(self.data, self.folder)
        name, count = training.name, len(training)
        head = self.model.name.partition(":")[0]
        if (warning := about_rate(head, DETECTORS[head].learning_rate, recipe.train)) is not None:
            printer(self.console)(warning)
        printer(self.console)(f"training {recipe.model.name} on {name} ({count} images), output in {self.folder}")
        return loader

    def fingerprint(self, teacher: Detector | None) -> dict[str, Any]:
        """The settings that a resumed run must share with this one."""
        settings = self.recipe.model_dump(mode="json", include={"model", "data", "methods"})
        inherited = self.recipe.teacher.inherit
        return settings | {"teacher": digest(teacher)} | ({"inherit": inherited} if inherited else {})

    def finish(self, student: Detector, summary: FitSummary) -> Outcome:
        """Save the student, measure it on the evaluation split, and write the metrics."""
        recipe = self.recipe
        card = ModelCard(
            model=self.model,
            classes=self.data.classes,
            category_ids=self.data.category_ids,
            image_size=recipe.data.image_size,
        )
        if is_main():  # before the evaluation: an unreadable test image must not cost the training
            self.run.save(student, card)
        _, split = self.splits
        metrics, results = measure(student, self.data, split, recipe.data, recipe.train)
        metrics |= {"train_seconds": summary.train_seconds, "images_per_second": summary.images_per_second}
        metrics |= {"peak_memory_bytes": summary.peak_memory_bytes, "epochs": summary.epochs, "steps": summary.steps}
        if is_main():
            self.run.end(recipe, metrics, results)
            with Trackers(recipe.train.trackers, self.folder, summary.steps) as trackers:
                trackers.log(metrics, summary.steps, FINAL)
            if self.page:
                report_at_end(self.folder, self.data, boxes=len(results), console=self.console)
        return Outcome(self.folder, metrics)


def _settings(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that decides the result."""
    return recipe.model_dump(mode="json", exclude=RESULT_FREE)
