"""Flags as fields of a recipe: defaults, lists, `none`, options, and the spelling of names."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detdistill import run
from detdistill.cli import flags
from detdistill.detectors.adamixer.sampling import Sampling
from detdistill.detectors.build import build
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig, Recipe, load
from detdistill.run.training import Outcome

from .commands import detdistill


def recipe_of(command: str, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The recipe with which a `train` command calls `run.train`. Nothing is trained."""
    recipes: list[Recipe] = []

    def record(recipe: Recipe, *arguments: Any, **keywords: Any) -> Outcome:
        recipes.append(recipe)
        return Outcome(Path("out"), {"AP": None, "per_class": {}})

    monkeypatch.setattr(run, "train", record)
    assert detdistill(command) == 0
    return recipes[0]


# Values.


@given(st.sampled_from(sorted(flags.FIELDS)))
def test_every_field_accepts_its_default_as_text(path: str) -> None:
    value: Any = Recipe()
    for name in path.split("."):
        value = getattr(value, name) if value is not None else None
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    if path.startswith(("data.train.", "data.val.", "data.test.")):
        return  # a split needs both paths; see the next test
    assert load(None, flags.overrides({path: text})) == Recipe()


def test_two_flags_set_the_paths_of_a_split() -> None:
    recipe = load(None, flags.overrides({"data.val.annotations": "a.json", "data.val.images": "images"}))
    assert recipe.data.val is not None
    assert (recipe.data.val.annotations, recipe.data.val.images) == (Path("a.json"), Path("images"))


def test_none_is_a_word_if_the_field_can_not_be_none() -> None:
    recipe = load(None, flags.overrides({"train.clip_norm": "none", "model.backbone_weights": "none"}))
    assert recipe.train.clip_norm is None
    assert recipe.model.backbone_weights == "none"


def test_flags_replace_the_file_and_the_file_replaces_defaults(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("train: {epochs: 7, seed: 3}\nmodel: {strides: [8, 16]}\n")
    recipe = load(str(file), flags.overrides({"train.epochs": "9", "model.strides": "8,16,32"}))
    assert (recipe.train.epochs, recipe.train.seed, recipe.train.batch_size) == (9, 3, Recipe().train.batch_size)
    assert recipe.model.strides == (8, 16, 32)


@pytest.mark.parametrize(("text", "parts"), [("neck", ("neck",)), ("neck,head", ("neck", "head"))])
def test_inherit_is_a_list_of_parts(text: str, parts: tuple[str, ...]) -> None:
    assert load(None, flags.overrides({"teacher.inherit": text})).teacher.inherit == parts


def test_inherit_refuses_other_parts() -> None:
    with pytest.raises(UserError, match=r"teacher.inherit.* 'neck' or 'head'"):
        load(None, flags.overrides({"teacher.inherit": "body"}))


# Options of one detector.


def adamixer_groups(config: ModelConfig) -> list[int]:
    """The number of groups in each `Sampling` of the detector that the config describes."""
    detector: Any = build(config, ("disc", "square"))
    return [module.groups for module in detector.modules() if isinstance(module, Sampling)]


def test_an_option_of_one_detector_reaches_the_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    small = "--model.channels 32 --model.decoder-layers 1 --model.queries 4 --backbone-weights none"
    command = f"train --model adamixer:mobilenetv2_035 --data shapes:8 {small}"
    recipe = recipe_of(f"{command} --model.options.groups 2 --model.options.out-points 16", monkeypatch)
    assert recipe.model.options == {"groups": 2, "out_points": 16}
    assert adamixer_groups(recipe.model) == [2]
    assert adamixer_groups(recipe_of(command, monkeypatch).model) == [4]


def test_options_of_the_teacher_are_apart_from_those_of_the_student() -> None:
    recipe = load(None, flags.overrides({}, None, {"groups": "2"}, {"out-points": "16"}))
    assert recipe.model.options == {"groups": 2}
    assert recipe.teacher.model.options == {"out_points": 16}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamixer", {"grups": 2}, r"model\.options\.grups: adamixer has no such option; did you mean 'groups'\?"),
        ("adamixer", {"groups": "two"}, r"model\.options\.groups is 'two'"),
        ("gfl", {"x": 1}, r"model\.options\.x: gfl has no such option; it has no options of its own"),
    ],
)
def test_a_wrong_option_of_one_detector_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    config = ModelConfig(name=f"{name}:mobilenetv2_035", channels=32, backbone_weights="none", options=options)
    with pytest.raises(UserError, match=message):
        build(config, ("disc", "square"))


# Names.


def test_labels_of_a_comparison_may_have_spaces_and_dashes() -> None:
    labels = flags.labels(" none, pkd + crosskd-roi,proposal-kd,pkd+crosskd_roi")
    assert labels == ["none", "pkd+crosskd_roi", "proposal_kd"]


def test_method_names_may_have_dashes_and_are_kept_once() -> None:
    assert flags.names("pkd, crosskd-roi,pkd", "--method") == ["pkd", "crosskd_roi"]
    assert flags.names(None, "--method") is None
    with pytest.raises(UserError, match=r"--method 'pkd,': give names separated by commas"):
        flags.names("pkd,", "--method")


def test_flags_have_one_spelling() -> None:
    arguments = ["--train.max_steps=3", "--model.two_stage", "True", "--methods", "pkd", "--methods.pkd.weight", "a_b"]
    assert flags.tidy(arguments) == [
        "--train.max-steps=3",
        "--model.two-stage=True",
        "--method",
        "pkd",
        "--methods.pkd.weight",
        "a_b",
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--ema"], ["--ema=on"]),
        (["--ema", "--epochs", "3"], ["--ema=on", "--epochs", "3"]),
        (["--train.ema", "0.99"], ["--train.ema", "0.99"]),
        (["--train.ema=0.99", "--epochs"], ["--train.ema=0.99", "--epochs"]),
    ],
)
def test_ema_may_stand_without_a_value(words: list[str], expected: list[str]) -> None:
    assert flags.tidy(words) == expected


def test_ema_and_trackers_arrive_in_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "train --model gfl:resnet18 --data shapes:8 --train.trackers wandb,mlflow --workers auto --ema"
    train = recipe_of(command, monkeypatch).train
    assert (train.ema, train.trackers, train.workers) == (0.9998, ("wandb", "mlflow"), "auto")


def test_underscores_and_dashes_set_the_same_field(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "train --model gfl:resnet18 --data shapes:8"
    with_underscores = recipe_of(f"{command} --train.warmup_steps 7 --data.photometric true", monkeypatch)
    with_dashes = recipe_of(f"{command} --train.warmup-steps 7 --data.photometric", monkeypatch)
    assert with_underscores == with_dashes
    assert (with_dashes.train.warmup_steps, with_dashes.data.photometric) == (7, True)
