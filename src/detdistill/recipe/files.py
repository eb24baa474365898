"""Recipes from files, run folders and the package: read, merged, and checked."""

from collections.abc import Callable, Collection, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import ValidationError

from detdistill.errors import UserError, nearest, one_line
from detdistill.recipe.faults import explain
from detdistill.recipe.fields import Recipe, TrainConfig
from detdistill.text import read_text

Overrides = Annotated[Mapping[str, Any], "nested mapping that replaces fields of a recipe"]


def merge(base: Mapping[str, Any], over: Overrides) -> dict[str, Any]:
    """`base` with the values of `over`, mapping by mapping. Neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """{"train.lr": 1} as {"train": {"lr": 1}}; dashes in names become underscores."""
    tree: dict[str, Any] = {}
    for name, value in dotted.items():
        *parents, leaf = name.replace("-", "_").split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def packaged() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(Path(str(files("detdistill"))).glob("recipes/*.yaml"))}


def load(
    source: str | None,
    over: Overrides | None = None,
    methods: Collection[str] | None = None,
    *,
    origin: str = "recipe",
    say: Callable[[str], None] | None = None,
) -> Recipe:
    """The recipe of a file, a run folder or a packaged name (None: the defaults), with the values of `over`.

    source: several recipes may be separated by commas; a later one replaces the fields of an earlier one. methods: if
    given, exactly these methods stay, each with the options that the file and `over` set. origin: name of `over` in
    messages. say: prints a note if `over` sets the batch size but no learning rate. Raises UserError that names the
    file or flag, the field and the remedy.
    """
    content: dict[str, Any] = {}
    if source is not None:
        for name in [source] if "," not in source or Path(source).exists() else source.split(","):
            content = merge(content, _content(name.strip()))
    merged = merge(content, over or {})
    if methods is not None:
        options = merged.get("methods") or {}
        merged["methods"] = {name: options.get(name, {}) for name in methods}
    recipe = parse(merged, origin)
    note = rate_note(parse(content, origin).train, over or {}, recipe.train)
    if say is not None and note is not None:
        say(note)
    return recipe


def _content(source: str) -> dict[str, Any]:
    """The fields that one recipe sets. Raises UserError if there is no such recipe, or if it is wrong by itself."""
    path = Path(source) / "recipe.yaml" if Path(source).is_dir() else Path(source)
    if not path.exists() and Path(source).is_dir() and source not in packaged():
        raise UserError(f"--recipe {source}: the folder has no recipe.yaml; give a run folder or a file")
    if not path.exists() and source not in packaged():
        hint = nearest(source, packaged())
        raise UserError(f"--recipe {source}: neither a file nor one of {', '.join(packaged())}{hint}")
    path = path if path.exists() else packaged()[source]
    content = read_yaml(path)
    parse(content, str(path))  # without other fields, so that the message names the file if the file is wrong
    return content


def rate_note(before: TrainConfig, over: Overrides, now: TrainConfig) -> str | None:
    """A line about the learning rate if `over` changes the batch size and leaves the rate, or None."""
    if "lr" in (over.get("train") or {}) or now.batch_size == before.batch_size or before.batch_size == "auto":
        return None
    note = f"note: the learning rate {now.lr:g} is meant for batches of {before.batch_size} images and stays as it is"
    if now.batch_size == "auto":
        return f"{note}; linear scaling would multiply it by the batch size / {before.batch_size}"
    return f"{note}; linear scaling to {now.batch_size} would give --lr {now.lr * now.batch_size / before.batch_size:g}"


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a repeated key is an error; plain YAML silently keeps the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # a list or a mapping, which the base class refuses
            if key.value in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: the key {key.value!r} is repeated; keep one")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a recipe file. Raises UserError if it can't be read."""
    try:
        content = yaml.load(read_text(path), _Loader)
    except OSError as error:
        raise UserError(f"{path}: can't read the recipe ({error.strerror}); see `detdistill list recipes`") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: invalid YAML: {yaml_problem(error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a mapping with the keys {', '.join(Recipe.model_fields)}")
    return content


def yaml_problem(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """The error in one line, with the number of the line in the file if it is known."""
    if isinstance(error, UnicodeDecodeError):
        return f"the file is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return one_line(error)


def parse(content: Mapping[str, Any], source: str) -> Recipe:
    """The validated recipe. Raises UserError with the field and the remedy. source: name of the file or flag in
    messages.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{source}: {explain(error)}") from None
