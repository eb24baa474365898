"""The objective: terms by name, weights by warm-up, methods by addition, and a teacher that is nowhere in it."""

import pytest
import torch

from detdistill.engine.distillation import Distillation
from detdistill.engine.schedule import Schedule
from detdistill.types import Need, TrainState
from tests.detectors.builders import scene
from tests.methods.pairs import built, pair


def test_terms_add_up_and_keep_their_names():
    student, teacher = pair("gfl")
    methods = [built(name, student, teacher) for name in ("pkd", "crosskd")]
    both = Distillation(student, methods)
    batch, targets = scene()
    assert both.need == methods[0].need | methods[1].need
    with torch.no_grad():
        lesson = teacher.observe(batch, need=both.need)
    terms = both(batch, targets, lesson)
    assert set(terms) == {
        "task_classification",
        "task_box",
        "task_edges",
        "pkd_features",
        "crosskd_class",
        "crosskd_box",
    }
    for method in methods:
        alone = Distillation(student, [method])(batch, targets, lesson)
        for name, term in alone.items():
            torch.testing.assert_close(terms[name], term)
    plain = Distillation(student)(batch, targets)
    assert {name: term.item() for name, term in plain.items()} == {name: terms[name].item() for name in plain}


def test_warm_up_raises_the_methods_alone():
    student, teacher = pair("fcos")
    distillation = Distillation(student, [built("pkd", student, teacher)], {"pkd": Schedule(warmup_steps=4)})
    batch, targets = scene()
    with torch.no_grad():
        lesson = teacher.observe(batch, need=distillation.need)
    runs = [distillation(batch, targets, lesson, TrainState(step)) for step in (0, 1, 4, 9)]
    full = runs[2]["pkd_features"]
    assert [(run["pkd_features"] / full).item() for run in runs] == pytest.approx([0, 0.25, 1, 1])
    assert len({run["task_classification"].item() for run in runs}) == 1


def test_the_teacher_is_in_no_module_tree():
    student, teacher = pair("fcos", channels=48)
    distillation = Distillation(student, [built("pkd", student, teacher)])
    batch, targets = scene()
    with torch.no_grad():
        lesson = teacher.observe(batch, need=distillation.need)
    distillation(batch, targets, lesson)
    owned = {id(p) for p in distillation.parameters()}
    assert not owned & {id(p) for p in teacher.parameters()}
    assert set(distillation.state_dict()) == {f"student.{n}" for n in student.state_dict()} | {
        f"methods.{n}" for n in distillation.methods.state_dict()
    }
    assert distillation.methods.state_dict()  # connectors are here, and not in what is saved of the student
    distillation.train()
    assert not teacher.training


def test_misuse_is_told():
    student, teacher = pair("fcos")
    method = built("pkd", student, teacher)
    with pytest.raises(ValueError, match="each method once"):
        Distillation(student, [method, method])
    with pytest.raises(ValueError, match="need a lesson"):
        Distillation(student, [method])(*scene())
    with pytest.raises(ValueError, match="schedules of pdk, and the methods are pkd"):
        Distillation(student, [method], {"pdk": Schedule()})


def test_without_methods_nothing_is_asked_of_a_teacher():
    assert Distillation(pair("fcos")[0]).need == Need()
