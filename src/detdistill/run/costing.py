"""Predictions of time and memory for a pair: the parts of a step are measured, and added up for each method."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import reduce
from operator import or_
from typing import Any

from detdistill.inspection.estimate import Base, Prediction
from detdistill.inspection.probe import Clock, MethodCost, PassCost, Probe
from detdistill.inspection.saved import bytes_of
from detdistill.methods import Method
from detdistill.run.feeding import feed
from detdistill.run.inspected_models import Models
from detdistill.run.tables import Say
from detdistill.types import Need


@dataclass(frozen=True)
class Costs:
    """plain: plain training. methods: each method, and all methods of the recipe together under "a+b" if they are
    several. measured: the numbers behind the predictions, for a JSON file.
    """

    plain: Prediction
    methods: Mapping[str, Prediction]
    measured: Mapping[str, Any]


def predict_costs(
    models: Models, methods: list[Method], tell: Say, seconds: float, clock: Clock, setup: float = 0.0
) -> Costs:
    """Measure the parts of a step of a pair that has a student, and predict runs with each of the methods.

    tell: is called with what is measured next. seconds: after this time no measurement is repeated. setup:
    seconds that it took to open data and models.
    """
    assert models.student is not None
    recipe, teacher = models.recipe, models.teacher
    tell("measuring how fast images are read")
    fed = feed(recipe, models.data, len(models.student.info.classes), clock)
    probe = Probe(models.student, fed.batch, fed.targets, recipe.train, clock=clock, seconds=seconds)
    tell("measuring the student's step")
    step = probe.step()
    groups = {method.name: [method] for method in methods}
    if len(recipe.methods) > 1 and len(methods) == len(recipe.methods):
        groups["+".join(groups)] = methods
    passes: dict[Need, PassCost] = {}
    costs: dict[str, MethodCost] = {}
    detect, weights = 0.0, 0
    if teacher is not None:
        weights = bytes_of(teacher.state_dict())
    if teacher is not None and methods:
        tell("measuring the teacher's forward pass")
        passes = probe.passes(teacher, map(_need, groups.values()))
        if models.data is not None and recipe.teacher.sample and teacher.info.classes:
            detect = probe.detect(teacher)
        numbers = {method.name: number for number, method in enumerate(methods, start=1)}
        count = len(methods)
        costs = probe.methods(teacher, methods, lambda name: tell(f"measuring {name} ({numbers[name]} of {count})"))
    base = Base(step, recipe.train, fed.loading, models.schedule, weights, detect, setup)
    predictions = {
        name: base.predict(passes[_need(group)], [costs[method.name] for method in group])
        for name, group in groups.items()
    }
    measured = {
        "batch": list(fed.batch.images.shape),
        "step": asdict(step),
        "loading": asdict(fed.loading),
        "teacher_detect": detect,
        "setup": setup,
    }
    measured["methods"] = {
        name: {"forward": cost.forward, "backward": cost.backward, "bytes": cost.bytes, "parameters": cost.parameters}
        for name, cost in costs.items()
    }
    return Costs(base.predict(), predictions, measured)


def _need(methods: list[Method]) -> Need:
    """What the methods together read of the teacher."""
    return reduce(or_, (method.need for method in methods), Need())
