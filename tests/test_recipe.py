"""Recipes and flags: defaults, under the file, under the command line."""

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detdistill.cli import flags
from detdistill.errors import UserError
from detdistill.recipe import Recipe, load, merge, nested, packaged, parse

KEYS = st.sampled_from(["a", "b", "c"])
LEAVES = st.integers() | st.lists(st.integers(), max_size=2)
TREES = st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=8)
MAPPINGS = st.dictionaries(KEYS, TREES, max_size=3)


def leaves(tree: dict[str, Any], above: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    flat: dict[tuple[str, ...], Any] = {}
    for key, value in tree.items():
        flat |= leaves(value, (*above, key)) if isinstance(value, dict) and value else {(*above, key): value}
    return flat


@given(MAPPINGS, MAPPINGS)
def test_merge_keeps_what_is_over_and_what_it_does_not_touch(base: dict, over: dict) -> None:
    before = copy.deepcopy((base, over))
    merged = leaves(merge(base, over))
    assert (base, over) == before
    wins = {path: value for path, value in leaves(over).items() if value != {}}
    assert wins.items() <= merged.items()
    for path, value in leaves(base).items():
        touched = any(path[: len(other)] == other or other[: len(path)] == path for other in leaves(over))
        if not touched:
            assert merged[path] == value


@given(MAPPINGS)
def test_merge_has_the_empty_mapping_for_its_neutral_element(tree: dict) -> None:
    assert merge(tree, {}) == tree == merge({}, tree)
    assert merge(tree, tree) == tree


@given(st.dictionaries(st.sampled_from(["a.b", "a.c", "a.d.e", "f", "g.h_i"]), st.integers()))
def test_nested_is_undone_by_joining_the_names(dotted: dict[str, int]) -> None:
    assert {".".join(path): value for path, value in leaves(nested(dotted)).items()} == dotted


def test_nested_takes_dashes_for_underscores() -> None:
    assert nested({"train.max-steps": 3}) == {"train": {"max_steps": 3}}


def test_a_flag_beats_the_file_and_the_file_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("train: {epochs: 7, seed: 3}\nmodel: {strides: [8, 16]}\n")
    recipe = load(str(file), flags.overrides({"train.epochs": "9", "model.strides": "8,16,32"}))
    assert (recipe.train.epochs, recipe.train.seed, recipe.train.batch_size) == (9, 3, Recipe().train.batch_size)
    assert recipe.model.strides == (8, 16, 32)


@given(st.sampled_from(sorted(flags.FIELDS)))
def test_every_field_of_the_recipe_can_be_given_its_default_as_text(path: str) -> None:
    part: Any = Recipe()
    for name in path.split("."):
        part = getattr(part, name) if part is not None else None
    text = ",".join(map(str, part)) if isinstance(part, tuple) else str(part)
    if path.startswith(("data.train.", "data.val.", "data.test.")):
        return  # a split needs both its paths, tested below
    assert load(None, flags.overrides({path: text})) == Recipe()


def test_split_paths_come_from_flags() -> None:
    recipe = load(None, flags.overrides({"data.val.annotations": "a.json", "data.val.images": "pics"}))
    assert recipe.data.val is not None
    assert (recipe.data.val.annotations, recipe.data.val.images) == (Path("a.json"), Path("pics"))


def test_none_is_none_only_where_a_field_may_be_none() -> None:
    recipe = load(None, flags.overrides({"train.clip_norm": "none", "model.backbone_weights": "none"}))
    assert recipe.train.clip_norm is None
    assert recipe.model.backbone_weights == "none"


def test_the_methods_named_are_exactly_those_that_stay_with_their_options(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("methods: {pkd: {weight: 4.0}, crosskd: {}}\n")
    assert load(str(file), methods=["pkd"]).methods == {"pkd": {"weight": 4.0}}
    assert list(load(str(file), methods=["mimicking", "pkd"]).methods) == ["mimicking", "pkd"]
    assert load(str(file), flags.overrides({}, {"pkd": {"levels": "2"}})).methods == {
        "pkd": {"weight": 4.0, "levels": 2},
        "crosskd": {},
    }


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("train: {epcohs: 3}", ["train.epcohs", "'epochs'"]),
        ("data: {val: {annotation: a, images: b}}", ["data.val.annotation", "'annotations'"]),
        ("train: {lr: fast}", ["train.lr", "'fast'"]),
        ("train: {epochs: 0}", ["train.epochs", "greater than or equal to 1"]),
        ("data: {val: {images: b}}", ["'data.val.annotations' is missing"]),
        ("data: {image_size: big}", ["'data.image_size' is 'big'"]),
        ("methods: {pkd: 3}", ["'methods.pkd' is 3"]),
        ("- a list", ["a recipe is a mapping"]),
        ("train: {lr: [}", ["not YAML"]),
    ],
)
def test_a_wrong_recipe_is_named_with_its_field(tmp_path: Path, content: str, told: list[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(UserError) as caught:
        load(str(file), {"train": {"seed": 1}})
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    assert all(part in message for part in told)


def test_what_is_laid_over_a_recipe_is_named_for_whom_it_came_from() -> None:
    with pytest.raises(UserError, match=r"^recipe: field 'train.epochs' is 0"):
        load(None, {"train": {"epochs": 0}})
    with pytest.raises(UserError, match=r"^command line: field 'train.epochs' is 0"):
        load(None, {"train": {"epochs": 0}}, origin="command line")


def test_a_recipe_that_is_nowhere_is_told_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"did you mean 'demo-teacher'"):
        load("demo-teachr")


def test_packaged_recipes_are_recipes_that_say_what_they_do() -> None:
    assert {"demo", "demo-teacher"} <= packaged().keys()
    for name, path in packaged().items():
        recipe = load(name)
        assert recipe.model.name, name
        assert path.read_text().startswith("# "), name
        assert len(path.read_text().splitlines()) <= 60, name
        assert parse(recipe.model_dump(mode="json"), name) == recipe
