"""Recipes: how mappings are merged, and what a wrong recipe is refused with. `tests/cli/test_flags.py` tests flags."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detdistill.cli import flags
from detdistill.detectors.build import build
from detdistill.errors import UserError
from detdistill.evaluation import cost
from detdistill.recipe import load, merge, nested, packaged, parse

KEYS = st.sampled_from(["a", "b", "c"])
LEAVES = st.integers() | st.lists(st.integers(), max_size=2)
TREES = st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=8)
MAPPINGS = st.dictionaries(KEYS, TREES, max_size=3)


def leaves(tree: dict[str, Any], prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """The leaves of nested mappings by their paths. An empty mapping is a leaf."""
    by_path: dict[tuple[str, ...], Any] = {}
    for key, value in tree.items():
        path = (*prefix, key)
        by_path |= leaves(value, path) if isinstance(value, dict) and value else {path: value}
    return by_path


@given(MAPPINGS, MAPPINGS)
def test_merge_takes_the_leaves_of_over_and_keeps_the_others_of_base(base: dict, over: dict) -> None:
    before = copy.deepcopy((base, over))
    merged = leaves(merge(base, over))
    assert (base, over) == before
    over_leaves = leaves(over)
    assert {path: value for path, value in over_leaves.items() if value != {}}.items() <= merged.items()
    for path, value in leaves(base).items():
        # A leaf of `over` replaces this leaf if one of the two paths begins with the other one.
        is_replaced = any(path[: len(key)] == key or key[: len(path)] == path for key in over_leaves)
        if not is_replaced:
            assert merged[path] == value


@given(MAPPINGS)
def test_merge_with_an_empty_mapping_or_with_itself_changes_nothing(tree: dict) -> None:
    assert merge(tree, {}) == tree == merge({}, tree)
    assert merge(tree, tree) == tree


@given(st.dictionaries(st.sampled_from(["a.b", "a.c", "a.d.e", "f", "g.h_i"]), st.integers()))
def test_joined_paths_of_a_nested_mapping_are_the_dotted_names(dotted: dict[str, int]) -> None:
    assert {".".join(path): value for path, value in leaves(nested(dotted)).items()} == dotted


def test_dashes_in_dotted_names_become_underscores() -> None:
    assert nested({"train.max-steps": 3}) == {"train": {"max_steps": 3}}


def test_the_named_methods_stay_with_the_options_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("methods: {pkd: {weight: 4.0}, crosskd: {}}\n")
    assert load(str(file), methods=["pkd"]).methods == {"pkd": {"weight": 4.0}}
    assert list(load(str(file), methods=["mimicking", "pkd"]).methods) == ["mimicking", "pkd"]
    over = flags.overrides({}, {"pkd": {"levels": "2"}})
    assert load(str(file), over).methods == {"pkd": {"weight": 4.0, "levels": 2}, "crosskd": {}}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("train: {epcohs: 3}", ["train.epcohs", "'epochs'"]),
        ("data: {val: {annotation: a, images: b}}", ["data.val.annotation", "'annotations'"]),
        ("train: {lr: fast}", ["train.lr", "'fast'"]),
        ("train: {epochs: 0}", ["train.epochs", "greater than or equal to 1"]),
        ("data: {val: {images: b}}", ["'data.val.annotations' is missing"]),
        ("data: {image_size: big}", ["'data.image_size' is 'big'"]),
        ("methods: {pkd: 3}", ["'methods.pkd' is 3"]),
        ("model: {options: 3}", ["'model.options' is 3"]),
        ("train: {seed: 1}\ntrain: {seed: 2}", ["line 2: the key 'train' is repeated"]),
        ("- a list", ["a recipe is a mapping"]),
        ("train: {lr: [}", ["invalid YAML"]),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_file_and_field(tmp_path: Path, content: str, parts: list[str]) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(content)
    with pytest.raises(UserError) as caught:
        load(str(file), {"train": {"seed": 1}})
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    assert [part for part in parts if part not in message] == [], message


def test_a_wrong_override_is_refused_with_its_origin() -> None:
    with pytest.raises(UserError, match=r"^recipe: field 'train.epochs' is 0"):
        load(None, {"train": {"epochs": 0}})
    with pytest.raises(UserError, match=r"^command line: field 'train.epochs' is 0"):
        load(None, {"train": {"epochs": 0}}, origin="command line")


def test_an_unknown_recipe_is_refused_with_a_similar_name() -> None:
    with pytest.raises(UserError, match=r"did you mean 'demo-teacher'"):
        load("demo-teachr")


def test_a_later_recipe_replaces_the_fields_of_an_earlier_one(tmp_path: Path) -> None:
    demo, strong = load("demo"), load("strong")
    both = load("demo, strong")
    assert both.model == demo.model
    assert both.train == demo.train.model_copy(update={"ema": strong.train.ema})
    assert both.data.path == demo.data.path
    assert (both.data.mosaic, both.data.multiscale) == (strong.data.mosaic, strong.data.multiscale)
    assert both.data.mosaic > 0 and both.data.multiscale != (1, 1)
    file = tmp_path / "a,b.yaml"  # a name with a comma
    file.write_text("train: {epochs: 7}")
    assert load(str(file)).train.epochs == 7
    with pytest.raises(UserError, match=r"--recipe strng: neither a file nor one of .*did you mean 'strong'"):
        load("demo,strng")


@pytest.mark.parametrize(
    ("source", "train", "end"),
    [
        (None, {"batch_size": "16"}, "rate 0.001 is meant for batches of 8 images and .* to 16 would give --lr 0.002"),
        ("demo", {"batch_size": 4}, "rate 0.002 is meant for batches of 8 images and .* to 4 would give --lr 0.001"),
        (None, {"batch_size": "auto"}, "rate 0.001 .* would multiply it by the batch size / 8"),
        (None, {"batch_size": 16, "lr": 0.001}, None),
        (None, {"batch_size": 8}, None),
        ("demo", {"lr": 0.1}, None),
    ],
)
def test_a_batch_size_without_a_learning_rate_is_noted(source: str | None, train: dict, end: str | None) -> None:
    said: list[str] = []
    recipe = load(source, {"train": train}, say=said.append)
    assert str(recipe.train.lr) == str(train.get("lr", load(source).train.lr))  # the rate itself stays
    assert len(said) == (end is not None)
    if end is not None:
        assert re.search(f"note: the learning {end}", said[0]), said[0]


@pytest.mark.parametrize(
    ("value", "ema"), [("on", 0.9998), (True, 0.9998), ("off", None), (False, None), (None, None), ("0.99", 0.99)]
)
def test_the_moving_average_can_be_turned_on_by_a_word(value: Any, ema: float | None) -> None:
    assert load(None, {"train": {"ema": value}}).train.ema == ema


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"ema": "yes"}, "'train.ema' is 'yes': give a decay between 0 and 1, such as 0.999, or on"),
        ({"ema": 1.5}, "'train.ema' is 1.5: give a decay"),
        ({"batch_size": "all"}, "'train.batch_size' is 'all': give a number of images, 1 or more, or auto"),
        ({"workers": -1}, "'train.workers' is -1: give a number, 0 or more, or auto"),
        ({"trackers": ["tensorbord"]}, "'tensorboard', 'wandb' or 'mlflow'"),
    ],
)
def test_a_wrong_value_is_refused_with_what_the_field_may_be(train: dict, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load(None, {"train": train})


def test_an_automatic_batch_size_is_no_number_yet() -> None:
    train = load(None, {"train": {"batch_size": "auto"}}).train
    with pytest.raises(UserError, match="--batch-size auto: only `train` and `distill` can choose it"):
        _ = train.images_per_step


def test_packaged_recipes_are_valid_short_and_begin_with_a_description() -> None:
    assert {"demo", "demo-teacher"} <= packaged().keys()
    for name, path in packaged().items():
        recipe = load(name)
        assert recipe.model.name or name == "strong", name  # `strong` is laid over another recipe
        assert path.read_text().startswith("# "), name
        assert len(path.read_text().splitlines()) <= 60, name
        assert parse(recipe.model_dump(mode="json"), name) == recipe


@pytest.mark.parametrize(("classes", "flops"), [(3, 0.40e9), (80, 0.42e9)])
def test_the_small_recipe_keeps_its_promise(classes: int, flops: float) -> None:
    model = load("small", {"model": {"backbone_weights": "none"}}).model
    detector = build(model, [str(index) for index in range(classes)])
    counted = cost(detector, (320, 320), "cpu", runs=1, seconds=0)
    assert counted["params"] < 1e6
    assert counted["flops"] < 0.5e9
    # The numbers of the text in the recipe.
    assert counted["params"] == pytest.approx(0.45e6, rel=0.02)
    assert counted["flops"] == pytest.approx(flops, rel=0.01)
