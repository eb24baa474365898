"""The objective: names of the terms, the sum over methods, warm-up, and a teacher that is not part of the module."""

import pytest
import torch

from detdistill.engine.distillation import Distillation
from detdistill.engine.schedule import Schedule
from detdistill.types import Need, TrainState
from tests.detectors.builders import scene
from tests.methods.pairs import built, pair

from .fakes import FakeLoader, Match, small_detector


def test_each_method_has_the_terms_that_it_has_alone():
    student, teacher = pair("gfl")
    methods = [built(name, student, teacher) for name in ("pkd", "crosskd")]
    distillation = Distillation(student, methods)
    batch, targets = scene()
    assert distillation.need == methods[0].need | methods[1].need
    with torch.no_grad():
        teacher_output = teacher.observe(batch, need=distillation.need)
    terms = distillation(batch, targets, teacher_output)
    task_terms = {"task_classification", "task_box", "task_edges"}
    assert set(terms) == task_terms | {"pkd_features", "crosskd_class", "crosskd_box"}
    for method in methods:
        for name, term in Distillation(student, [method])(batch, targets, teacher_output).items():
            torch.testing.assert_close(terms[name], term)
    plain_terms = Distillation(student)(batch, targets)
    assert {name: term.item() for name, term in plain_terms.items()} == {
        name: terms[name].item() for name in plain_terms
    }


def test_warm_up_changes_the_terms_of_methods_only():
    student, teacher = pair("fcos")
    distillation = Distillation(student, [built("pkd", student, teacher)], {"pkd": Schedule(warmup_steps=4)})
    batch, targets = scene()
    with torch.no_grad():
        teacher_output = teacher.observe(batch, need=distillation.need)
    by_step = [distillation(batch, targets, teacher_output, TrainState(step)) for step in (0, 1, 4, 9)]
    full = by_step[2]["pkd_features"]
    assert [(terms["pkd_features"] / full).item() for terms in by_step] == pytest.approx([0, 0.25, 1, 1])
    assert len({terms["task_classification"].item() for terms in by_step}) == 1


def test_a_stopped_method_has_no_terms_and_needs_no_output():
    methods = [Match(name="long"), Match(name="short", pyramid="backbone")]
    student = small_detector()
    distillation = Distillation(student, methods, {"short": Schedule(stop=0.3), "long": Schedule(stop=0.6)})
    both = Need(pyramids=frozenset({"neck", "backbone"}))
    neck = Need(pyramids=frozenset({"neck"}))
    needs = [distillation.need_at(TrainState(step, 10)) for step in (0, 2, 3, 5, 6, 9)]
    assert needs == [both, both, neck, neck, None, None]
    assert distillation.need == both
    batch, targets = FakeLoader().batch(0, 0)
    teacher_output = small_detector(1).observe(batch)
    prefixes = [
        {name.split("_")[0] for name in distillation(batch, targets, teacher_output, TrainState(step, 10))}
        for step in (2, 3)
    ]
    assert prefixes == [{"task", "long", "short"}, {"task", "long"}]
    without_methods = distillation(batch, targets, None, TrainState(6, 10))  # no teacher output is needed
    assert set(without_methods) == {"task_box", "task_class"}
    assert student.needs == [both, neck, Need()]


def test_the_teacher_is_not_part_of_the_module():
    student, teacher = pair("fcos", channels=48)
    distillation = Distillation(student, [built("pkd", student, teacher)])
    batch, targets = scene()
    with torch.no_grad():
        teacher_output = teacher.observe(batch, need=distillation.need)
    distillation(batch, targets, teacher_output)
    ids = {id(parameter) for parameter in distillation.parameters()}
    assert not ids & {id(parameter) for parameter in teacher.parameters()}
    student_names = {f"student.{name}" for name in student.state_dict()}
    method_names = {f"methods.{name}" for name in distillation.methods.state_dict()}
    assert set(distillation.state_dict()) == student_names | method_names
    assert method_names  # connectors are part of the module, and not of the student
    distillation.train()
    assert not teacher.training


def test_wrong_arguments_are_refused():
    student, teacher = pair("fcos")
    method = built("pkd", student, teacher)
    with pytest.raises(ValueError, match="each method can be given once"):
        Distillation(student, [method, method])
    with pytest.raises(ValueError, match="methods need teacher_output"):
        Distillation(student, [method])(*scene())
    with pytest.raises(ValueError, match="there are schedules for pdk, but the methods are pkd"):
        Distillation(student, [method], {"pdk": Schedule()})


def test_a_module_that_is_not_a_method_is_refused_with_what_it_lacks():
    student, _ = pair("fcos")
    with pytest.raises(TypeError, match=r"Linear is not a method: it is not a subclass of .*Method"):
        Distillation(student, [torch.nn.Linear(2, 2)])


def test_without_methods_no_part_of_the_teacher_is_needed():
    student, _ = pair("fcos")
    assert Distillation(student).need == Need()


def test_images_without_labels_have_the_terms_of_methods_that_read_none() -> None:
    student, teacher = pair("gfl")
    methods = [built(name, student, teacher) for name in ("pkd", "cwd")]
    batch, targets = scene()
    teacher_output = teacher.observe(batch, need=methods[0].need)
    terms = Distillation(student, methods)(batch, None, teacher_output)
    assert terms.keys() == {"pkd_features", "cwd_features"}
    labeled = Distillation(student, methods)(batch, targets, teacher_output)
    assert all(torch.equal(term, labeled[name]) for name, term in terms.items())
    distillation = Distillation(student, [*methods, built("crosskd", student, teacher)])
    with pytest.raises(ValueError, match="read boxes, labels or an assignment: crosskd; pass Targets"):
        distillation(batch, None, teacher.observe(batch, need=distillation.need))


def test_gradients_are_measured_without_a_task_too() -> None:
    student, teacher = pair("gfl")
    distillation = Distillation(student, [built("pkd", student, teacher)])
    batch, _ = scene()
    teacher_output = teacher.observe(batch, need=distillation.need)
    distillation(batch, None, teacher_output, measure=True)
    assert distillation.ratios == {}
    assert distillation.gradients["share_pkd_features"] == pytest.approx(1)
