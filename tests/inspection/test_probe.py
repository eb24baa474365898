"""The parts of a training step of a small pair."""

from itertools import count

import torch

from detdistill.inspection.probe import Probe
from detdistill.methods import MGD, PKD, CrossKD
from detdistill.recipe import TrainConfig
from detdistill.run.pairing import build_methods, resolve
from detdistill.testing.scene import scene
from detdistill.types import Need
from tests.detectors.builders import tiny

CONFIG = TrainConfig(device="cpu", batch_size=2)


def probe_of(student, config: TrainConfig = CONFIG, **options: object) -> Probe:
    batch, targets = scene(3, (64, 64), config.images_per_step)
    return Probe(student, batch, targets, config, **options)


def test_every_part_is_measured_and_the_student_keeps_its_weights() -> None:
    student, teacher = tiny("gfl"), tiny("gfl", seed=1)
    before = [parameter.clone() for parameter in student.parameters()]
    probe = probe_of(student)
    step = probe.step()
    assert step.seconds > step.optimizer > 0 and step.detect > 0 and step.peak > 2**20
    assert step.parameters == sum(parameter.numel() for parameter in before)
    options = resolve({"pkd": {}, "crosskd": {}, "mgd": {}}, student.info, teacher.info)
    methods = build_methods(options, student.info, teacher.info)
    assert [type(method) for method in methods] == [PKD, CrossKD, MGD]
    passes = probe.passes(teacher, [method.need for method in methods])
    assert passes[methods[1].need].bytes > passes[methods[0].need].bytes  # the states of the towers, too
    named: list[str] = []
    costs = probe.methods(teacher, methods, named.append)
    assert named == list(costs) == ["pkd", "crosskd", "mgd"]
    for cost in costs.values():
        assert cost.forward > 0 and cost.backward > 0 and cost.bytes > 0
    assert costs["pkd"].parameters == 0 < costs["mgd"].parameters
    assert all(torch.equal(*pair) for pair in zip(student.parameters(), before, strict=True))
    assert all(parameter.grad is None for parameter in [*student.parameters(), *methods[2].parameters()])


def test_only_the_backward_pass_of_the_method_is_measured() -> None:
    """The student's own backward pass would call this hook of its backbone."""
    student, teacher = tiny("gfl"), tiny("gfl", seed=1)
    called: list[int] = []
    student.backbone_parameters()[0].register_hook(lambda gradient: called.append(1))
    [method] = build_methods(resolve({"pkd": {}}, student.info, teacher.info), student.info, teacher.info)
    probe = probe_of(student)
    probe.methods(teacher, [method], lambda name: None)
    assert called == []
    probe.step()
    assert called


def test_without_time_a_part_runs_once_or_twice() -> None:
    student = tiny("gfl")
    ticks = count()
    probe = probe_of(student, clock=lambda: float(next(ticks)), seconds=0.0)
    assert probe.step().seconds == 3.0  # between two ticks there are the two of the optimizer
    assert probe.passes(tiny("gfl", seed=1), [Need()])[Need()].seconds == 1.0


def test_a_method_is_measured_on_one_micro_batch() -> None:
    student, teacher = tiny("gfl"), tiny("gfl", seed=1)
    config = TrainConfig(device="cpu", batch_size=4, accumulate=2)
    whole = probe_of(student, TrainConfig(device="cpu", batch_size=4)).passes(teacher, [Need()])[Need()]
    part = probe_of(student, config).passes(teacher, [Need()])[Need()]
    assert part.bytes < whole.bytes
