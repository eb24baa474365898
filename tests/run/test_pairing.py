"""Options of a method and of its schedule lie side by side in a recipe."""

from dataclasses import fields

import pytest

from detdistill.cli import flags
from detdistill.engine.schedule import Schedule
from detdistill.errors import UserError
from detdistill.methods import METHODS
from detdistill.methods.presets import PRESETS
from detdistill.recipe import load
from detdistill.run.pairing import check_methods, configure, resolve, schedules
from tests.detectors.builders import tiny

COMMON = {item.name for item in fields(Schedule)}


@pytest.mark.parametrize("name", METHODS)
def test_no_method_has_an_option_of_the_name_of_a_common_one(name: str) -> None:
    assert not COMMON & {item.name for item in fields(METHODS[name].Config)}


def test_options_are_split_between_the_method_and_its_schedule() -> None:
    config, schedule = configure("pkd", {"weight": 3, "decay": "cosine", "stop": 0.8, "balance": "none"})
    assert config == METHODS["pkd"].Config(weight=3.0)
    assert schedule == Schedule(decay="cosine", stop=0.8)


def test_flags_give_them_too() -> None:
    recipe = load(None, flags.overrides({}, {"pkd": {"warmup-steps": "100", "decay": "linear", "balance": "0.5"}}))
    check_methods(recipe.methods)
    assert schedules(recipe.methods) == {"pkd": Schedule(warmup_steps=100, decay="linear", balance=0.5)}


def test_a_resolved_recipe_has_them_all_and_presets_may_give_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "pkd", {"fcos": {"warmup_steps": 400, "stop": 0.9}})
    info = tiny("fcos").info
    found = resolve({"pkd": {"stop": 0.5}}, info, info)
    assert found["pkd"].keys() == COMMON | {item.name for item in fields(METHODS["pkd"].Config)}
    assert schedules(found) == {"pkd": Schedule(warmup_steps=400, stop=0.5)}
    assert resolve(found, info, info) == found


@pytest.mark.parametrize(
    ("options", "told"),
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
def test_wrong_options_are_named(options: dict, told: str) -> None:
    with pytest.raises(UserError) as caught:
        check_methods({"pkd": options})
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
