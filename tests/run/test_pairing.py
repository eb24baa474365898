"""The options of methods and of their schedules, and the pairs of detectors that methods serve."""

from dataclasses import fields

import pytest

from detdistill.cli import flags
from detdistill.detectors.build import build
from detdistill.engine.schedule import Schedule
from detdistill.errors import UserError
from detdistill.methods import METHODS
from detdistill.methods.presets import PRESETS
from detdistill.recipe import ModelConfig, load
from detdistill.run.pairing import build_methods, check_methods, configure, pair, resolve, schedules, served
from tests.detectors.builders import tiny

SCHEDULE_OPTIONS = {item.name for item in fields(Schedule)}


@pytest.mark.parametrize("name", METHODS)
def test_no_option_of_a_method_has_the_name_of_a_schedule_option(name: str) -> None:
    assert not SCHEDULE_OPTIONS & {item.name for item in fields(METHODS[name].Config)}


def test_options_are_split_between_the_method_and_its_schedule() -> None:
    config, schedule = configure("pkd", {"weight": 3, "decay": "cosine", "stop": 0.8, "balance": "none"})
    assert config == METHODS["pkd"].Config(weight=3.0)
    assert schedule == Schedule(decay="cosine", stop=0.8)


def test_flags_set_options_of_the_schedule() -> None:
    recipe = load(None, flags.overrides({}, {"pkd": {"warmup-steps": "100", "decay": "linear", "balance": "0.5"}}))
    check_methods(recipe.methods)
    assert schedules(recipe.methods) == {"pkd": Schedule(warmup_steps=100, decay="linear", balance=0.5)}


def test_resolved_options_are_complete_and_include_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "pkd", {"fcos": {"warmup_steps": 400, "stop": 0.9}})
    info = tiny("fcos").info
    resolved = resolve({"pkd": {"stop": 0.5}}, info, info)
    assert resolved["pkd"].keys() == SCHEDULE_OPTIONS | {item.name for item in fields(METHODS["pkd"].Config)}
    assert schedules(resolved) == {"pkd": Schedule(warmup_steps=400, stop=0.5)}
    assert resolve(resolved, info, info) == resolved


def test_user_options_replace_presets_and_presets_replace_defaults() -> None:
    gfl = tiny("gfl").info
    published = resolve({"crosskd": {}, "pkd": {}}, gfl, gfl)
    assert published["crosskd"]["weight_box"] == 4.0  # the preset for GFL; the default is 1
    assert published["crosskd"]["align"] is True  # a default
    with_options = resolve({"crosskd": {"weight_box": 2, "student_depth": "none"}}, gfl, gfl)["crosskd"]
    assert (with_options["weight_box"], with_options["student_depth"]) == (2.0, None)
    assert resolve(published, gfl, gfl) == published  # a resolved recipe stays as it is


def test_a_teacher_with_the_default_model_serves_the_small_recipe() -> None:
    student, teacher = (
        build(model.model_copy(update={"backbone_weights": "none"}), ("disc", "square"))
        for model in (load("small").model, ModelConfig(name="gfl:mobilenetv2_035"))
    )
    # The towers of the teacher are deeper, so the recipe's text sets the depth of the student.
    options = {"pkd": {}, "mimicking": {}, "ld": {}, "fgd": {}, "crosskd": {"student_depth": -1}}
    resolved = resolve(options, student.info, teacher.info)
    assert [method.name for method in build_methods(resolved, student.info, teacher.info)] == list(options)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"warmup_step": 3}, "unknown option 'warmup_step'; did you mean 'warmup_steps'"),
        ({"wieght": 3}, "did you mean 'weight'"),
        ({"warmup_steps": 1.5}, "methods.pkd.warmup_steps is 1.5: "),
        ({"warmup_steps": -1}, "methods.pkd.warmup_steps is -1: "),
        ({"decay": "cosin"}, "methods.pkd.decay is 'cosin': "),
        ({"stop": 0}, "methods.pkd.stop is 0: "),
        ({"stop": 1.1}, "methods.pkd.stop is 1.1: "),
        ({"balance": 0}, "methods.pkd.balance is 0: "),
        ({"balance": float("inf")}, "methods.pkd.balance is inf: "),
        ({"stop": "none"}, "methods.pkd.stop is 'none': "),
    ],
)
def test_a_wrong_option_is_refused_with_its_name(options: dict, part: str) -> None:
    with pytest.raises(UserError) as caught:
        check_methods({"pkd": options})
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_method_is_refused_with_a_similar_name_or_all_names() -> None:
    with pytest.raises(UserError, match=r"unknown method 'pkdd'; did you mean 'pkd'.*your own needs --import FILE"):
        check_methods({"pkdd": {}})
    with pytest.raises(UserError, match=f"unknown method 'zzzz'; known are {', '.join(METHODS)}"):
        check_methods({"zzzz": {}})


def test_a_method_serves_the_heads_that_have_what_it_reads() -> None:
    heads = served(["crosskd", "kd"])
    assert heads.keys() == {"crosskd", "kd"}
    assert "gfl" in heads["crosskd"] and "faster_rcnn" not in heads["crosskd"]
    assert "faster_rcnn" in heads["kd"] and "gfl" not in heads["kd"]


def test_a_pair_has_the_published_options_and_schedules() -> None:
    student, teacher = tiny("gfl"), tiny("gfl", seed=1)
    distillation = pair(student, teacher, "pkd, crosskd,fgfi")
    assert [method.name for method in distillation.methods] == ["pkd", "crosskd", "fgfi"]
    assert distillation.methods[1].config.weight_box == 4.0  # published for GFL
    assert distillation.schedules["fgfi"] == Schedule(warmup_steps=400)  # published
    assert not any(part is teacher for part in distillation.modules())
    chosen = pair(student, teacher, {"pkd": {"weight": 3, "stop": 0.5}})
    assert chosen.methods[0].config.weight == 3.0
    assert chosen.schedules == {"pkd": Schedule(stop=0.5)}
    assert [method.name for method in pair(student, teacher, ["mgd"]).methods] == ["mgd"]


@pytest.mark.parametrize(
    ("methods", "reason"),
    [("pdk", "did you mean 'pkd'"), ({"pkd": {"wait": 1}}, "unknown option 'wait'"), ("kd", "RoI")],
)
def test_a_wrong_pair_is_refused(methods: object, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        pair(tiny("gfl"), tiny("gfl"), methods)  # type: ignore[arg-type]
