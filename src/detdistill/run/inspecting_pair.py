"""A student and its teacher before a run: what they are, which methods serve them, and what a run costs."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from detdistill.data.transforms import canvas_size
from detdistill.detectors.normalization import statistics_of
from detdistill.distributed import is_main
from detdistill.engine.device import find_device, open_accelerator
from detdistill.errors import UserError
from detdistill.files import write_json
from detdistill.inspection.estimate import Prediction
from detdistill.inspection.facts import ModelFacts, model_facts
from detdistill.inspection.findings import Finding, verdict, worst_first
from detdistill.inspection.probe import Clock
from detdistill.inspection.teacher import (
    Sample,
    class_findings,
    look,
    sample_findings,
    weight_findings,
)
from detdistill.methods import METHODS
from detdistill.recipe import Recipe
from detdistill.run.costing import Costs, predict_costs
from detdistill.run.folder import RunFolder, is_run
from detdistill.run.inspected_models import Models, open_models
from detdistill.run.models import place
from detdistill.run.nearest import Served, find_served
from detdistill.run.pair_tables import show_pair
from detdistill.run.pairing import check_methods
from detdistill.run.setup import teacher_sample
from detdistill.run.tables import Say, printer

BUDGET = 60.0  # seconds after which no measurement is repeated
SAMPLED = 32  # most images on which the teacher is looked at; a run measures it on more


@dataclass(frozen=True)
class PairInspection:
    """What is known of a student, a teacher, or both, before a run.

    setting: image size, batch size, device, threads, steps. names: of student and teacher, as they were given; empty
    if not given. student, teacher: facts; None if not given. served: every method that was asked for. costs: None
    without a student. findings: about the teacher, the worst first. sample: what the teacher detected; None if it was
    not looked at.
    """

    setting: Mapping[str, Any]
    names: tuple[str, str]
    student: ModelFacts | None
    teacher: ModelFacts | None
    served: Mapping[str, Served]
    costs: Costs | None
    findings: tuple[Finding, ...]
    sample: Sample | None

    @property
    def verdict(self) -> str:
        """One line about the teacher: the number of findings, and the worst of them."""
        return verdict(self.findings)

    def to_json(self) -> dict[str, Any]:
        """All numbers and findings, as a mapping for a JSON file."""
        predictions = {} if self.costs is None else dict(self.costs.methods)
        methods: dict[str, Any] = {}
        for name, entry in self.served.items():
            methods[name] = {"applies": entry.method is not None, "group": entry.group}
            if entry.method is None:
                methods[name] |= {"reason": entry.reason, "nearest": entry.nearest, "instead": list(entry.instead)}
            methods[name] |= _numbers(predictions.pop(name, None))
        return {
            "setting": dict(self.setting),
            "student": None if self.student is None else {"name": self.names[0], **asdict(self.student)},
            "teacher": None if self.teacher is None else {"name": self.names[1], **asdict(self.teacher)},
            "plain": None if self.costs is None else _numbers(self.costs.plain),
            "methods": methods,
            "together": {name: _numbers(value) for name, value in predictions.items()},
            "measured": None if self.costs is None else dict(self.costs.measured),
            "findings": [asdict(finding) for finding in self.findings],
            "verdict": self.verdict,
            "sample": None if self.sample is None else asdict(self.sample),
        }


def inspect_pair(
    recipe: Recipe,
    *,
    json: Path | None = None,
    console: Console | None = None,
    seconds: float = BUDGET,
    clock: Clock = time.perf_counter,
) -> PairInspection:
    """Inspect the student `recipe.model`, the teacher `recipe.teacher`, or both, with the recipe's data and schedule.

    Methods: those of the recipe, or else all. Time and memory are measured on this machine with a batch of the run.
    json: file for all numbers; nothing else is written. seconds: after this time no measurement is repeated. clock: for
    another time than that on the wall. Raises UserError for a wrong model, method, data set or flag.
    """
    if json is not None and json.is_dir():
        raise UserError(f"--json {json} is a folder: name a file")
    check_methods(recipe.methods)
    _ = recipe.train.images_per_step  # raises UserError for `auto`
    open_accelerator(recipe.train)  # raises UserError for an impossible device
    say = printer(console)
    begin = clock()
    models = open_models(recipe, say)
    setup = clock() - begin
    with _progress(console) as tell:
        found = _inspect(models, (recipe.model.name, recipe.teacher.path), tell, seconds, clock, setup)
    if is_main() and json is not None:
        write_json(json, found.to_json())
    if console is not None and is_main():
        show_pair(found, console)
    if json is not None:
        say(f"written to {json}")
    return found


def _inspect(
    models: Models, names: tuple[str, str], tell: Say, seconds: float, clock: Clock, setup: float
) -> PairInspection:
    """Everything that is measured, in an order in which the memory of the student's step is that of a run."""
    served: dict[str, Served] = {}
    if models.student is not None and models.teacher is not None:
        tell("finding the methods that serve this pair")
        chosen = models.recipe.methods or {name: {} for name in METHODS}
        served = find_served(chosen, models.student.info, models.teacher.info, models.model)
    findings = [] if models.teacher is None else weight_findings(models.teacher)
    costs = None
    if models.student is not None:
        methods = [entry.method for entry in served.values() if entry.method is not None]
        costs = predict_costs(models, methods, tell, seconds, clock, setup)
    more, sample = _look_at_teacher(models, tell, is_finite=not any(f.kind == "not-finite" for f in findings))
    tell("counting operations")
    size = canvas_size(models.recipe.data)
    student, teacher = (
        None if model is None else model_facts(model, size) for model in (models.student, models.teacher)
    )
    ordered = tuple(worst_first([*findings, *more]))
    return PairInspection(_setting(models), names, student, teacher, served, costs, ordered, sample)


def _look_at_teacher(models: Models, tell: Say, *, is_finite: bool) -> tuple[list[Finding], Sample | None]:
    """The findings about the teacher besides its weights, and what it detects on images that it was not trained on."""
    teacher, data, recipe = models.teacher, models.data, models.recipe
    if teacher is None:
        return [], None
    found = _unfinished(Path(recipe.teacher.path)) if is_run(recipe.teacher.path) else []
    if data is None or not teacher.info.classes:
        return found, None
    found += class_findings(teacher.info.classes, data.classes)
    count = min(recipe.teacher.sample, SAMPLED)
    if not count or not is_finite:
        return found, None
    tell("looking at what the teacher detects")
    split, _ = teacher_sample(data, recipe)
    place(teacher, recipe.train.device)
    sample = look(teacher, split.take(count), recipe.data, recipe.train.images_per_step, statistics_of(teacher))
    return found + ([] if sample is None else sample_findings(sample, recipe.teacher.floor)), sample


def _setting(models: Models) -> dict[str, Any]:
    """What the numbers depend on."""
    recipe, schedule = models.recipe, models.schedule
    height, width = canvas_size(recipe.data)
    device = find_device(recipe.train.device)
    return {
        "image_size": [height, width],
        "batch_size": recipe.train.images_per_step,
        "device": str(device) if device.type != "cuda" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "precision": recipe.train.precision,
        "data": recipe.data.path or None,
        "epochs": recipe.train.epochs,
        "steps": None if schedule is None else schedule.steps,
        "images": None if models.data is None else len(models.data.training_split(recipe.data)),
        "evaluated": None if schedule is None else schedule.evaluated,
    }


def _unfinished(folder: Path) -> list[Finding]:
    """A finding if the run in the folder saved its model and was then stopped, before it was measured."""
    run = RunFolder(folder)
    if run.recipe() is None or run.finished:
        return []
    remedy = f"finish it with --resume --out {folder}, or measure it with `detdistill evaluate --model {folder}`"
    return [Finding("unfinished", "warning", 1, "its run did not finish: it has no metrics.json", (), remedy)]


@contextmanager
def _progress(console: Console | None) -> Iterator[Say]:
    """A function that shows what is done next, in one line that changes. In a file or a pipe, one line is printed."""
    if console is None or not is_main():
        yield lambda text: None
    elif console.is_terminal:
        with console.status("") as status:
            yield status.update
    else:
        console.print("measuring on this machine, which takes one or two minutes")
        yield lambda text: None


def _numbers(prediction: Prediction | None) -> dict[str, Any]:
    """The numbers of a prediction for a JSON file, rounded."""
    if prediction is None:
        return {}
    numbers = {name: value for name, value in asdict(prediction).items() if name != "memory"}
    rounded = {name: None if value is None else float(f"{value:.4g}") for name, value in numbers.items()}
    return {**rounded, "memory": prediction.memory}
