"""Wrong input that used to end in a traceback or in an unclear message."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from detdistill.data import open_data
from detdistill.data.layout import FORMATS, Format
from detdistill.detectors.registry import DETECTORS, DetectorRecord
from detdistill.engine.distillation import Distillation
from detdistill.errors import UserError
from detdistill.methods import METHODS, Method
from detdistill.recipe import DataConfig, load
from detdistill.run import build, pairing, plugins
from detdistill.run.plugins import REGISTRIES, load_plugins
from tests.engine.fakes import FakeLoader, small_detector

DETECTOR = """
from dataclasses import dataclass
from detdistill.detectors.dense.gfl import GFL
from detdistill.detectors.registry import DETECTORS, DetectorRecord
"""
METHOD = """
from dataclasses import dataclass
from detdistill.methods import METHODS, Method

@dataclass(frozen=True)
class Config:
    weight: TYPE = 1.0

class Own(Method):
    name, reads = "NAME", "nothing"
    Config = Config

    @classmethod
    def build(cls, config, student, teacher):
        return cls()

    def forward(self, student_output, teacher_output, targets, state):
        return {}

METHODS["NAME"] = Own
"""


@pytest.fixture(autouse=True)
def restored_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restores the registries, the modules and sys.path after each test."""
    before = {name: dict(registry) for name, registry in REGISTRIES.items()}
    modules = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plugins, "_loaded", set())
    yield
    for name, registry in REGISTRIES.items():
        registry.clear()
        registry.update(before[name])
    for module in set(sys.modules) - modules:
        if getattr(sys.modules[module], "__file__", None) and "pytest-of" in str(sys.modules[module].__file__):
            del sys.modules[module]


def write(folder: Path, text: str, name: str = "own_plugin.py") -> Path:
    """Write a plugin into the folder, and return its path."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


# Files of --import.


def test_a_file_can_import_the_file_beside_it(tmp_path: Path) -> None:
    write(tmp_path, "VALUE = 3\n", "own_helper.py")
    load_plugins([write(tmp_path, "from own_helper import VALUE\n")])
    assert sys.modules["own_plugin"].VALUE == 3


def test_objects_of_a_file_can_be_unpickled_in_another_process(tmp_path: Path) -> None:
    load_plugins([write(tmp_path, "class Source:\n    value = 3\n")])
    data = pickle.dumps(sys.modules["own_plugin"].Source())
    code = f"import pickle, sys; sys.path = {sys.path!r}; print(pickle.loads({data!r}).value)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "3\n"


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    first = write(tmp_path / "a", METHOD.replace("NAME", "first").replace("TYPE", "float"))
    second = write(tmp_path / "b", METHOD.replace("NAME", "second").replace("TYPE", "float"))
    load_plugins([first, second])
    assert METHODS["first"].__module__ != METHODS["second"].__module__
    assert all(sys.modules[METHODS[name].__module__].Own is METHODS[name] for name in ("first", "second"))


def test_a_file_that_fails_leaves_no_module_and_no_folder(tmp_path: Path) -> None:
    path = list(sys.path)
    with pytest.raises(UserError, match="line 1: ZeroDivisionError"):
        load_plugins([write(tmp_path, "1 / 0\n")])
    assert "own_plugin" not in sys.modules
    assert sys.path == path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys\nsys.exit(0)\n", "line 2: SystemExit: 0"),
        (METHOD.replace("NAME", "none").replace("TYPE", "float"), "`none` means plain training; choose another name"),
        (
            "from __future__ import annotations\n" + METHOD.replace("NAME", "own").replace("TYPE", "Missing"),
            "the types of its Config can't be read (name 'Missing' is not defined)",
        ),
        (DETECTOR + "DETECTORS['a:b'] = DetectorRecord(GFL, '')", "the name is 'a:b': use letters, digits"),
        (DETECTOR + "DETECTORS['hf'] = DetectorRecord(GFL, '')", "`hf:` marks pretrained models"),
        (
            DETECTOR + "DETECTORS['own'] = DetectorRecord(GFL, '', options=frozenset({'depth'}))",
            "its `options` name depth, which are not fields of ModelConfig",
        ),
        (
            DETECTOR + "DETECTORS['own'] = DetectorRecord(GFL, '', family_options=int)",
            "its `family_options` is not a dataclass",
        ),
        (
            DETECTOR + "DETECTORS['own'] = DetectorRecord(GFL, '', family_options='nowhere:Sizes')",
            "its `family_options` can't be imported",
        ),
        (
            "from detdistill.data.layout import FORMATS, Format\nFORMATS['own'] = Format('', print, None)",
            "its `read` is not a function",
        ),
        (
            "from detdistill.data.layout import FORMATS, Format\nFORMATS['shapes'] = Format('', print, print)",
            "`shapes` is the name of the built-in images",
        ),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_plugins([write(tmp_path, text)])
    assert message in str(caught.value)


def test_a_file_in_the_home_of_an_unknown_user_is_missing() -> None:
    with pytest.raises(UserError, match="there is no such file"):
        load_plugins([Path("~no-such-user/plugin.py")])


# What the user's own code returns.


@dataclass(frozen=True)
class NoDefault:
    """weight: has no default."""

    weight: float


class Broken(Method):
    """A method with wrong results."""

    name = "broken"
    Config = NoDefault

    def __init__(self, terms: Any = None):
        super().__init__()
        self.terms = terms

    @classmethod
    def build(cls, config: Any, student: Any, teacher: Any) -> Any:
        return None

    def forward(self, student_output: Any, teacher_output: Any, targets: Any, state: Any = None) -> Any:
        return self.terms


def test_an_option_without_default_must_be_set() -> None:
    METHODS["broken"] = Broken
    with pytest.raises(UserError, match=r"methods\.broken\.weight is missing: it has no default; set it with --meth"):
        pairing.configure("broken", {})


def test_a_build_that_returns_no_method_is_refused() -> None:
    METHODS["broken"] = Broken
    info: Any = SimpleNamespace()
    with pytest.raises(UserError, match="method broken: its `build` returned NoneType"):
        pairing.build_methods({"broken": {"weight": 1.0}}, info, info)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (None, "`forward` returned NoneType; return a dict of scalar tensors"),
        ({"a": 3}, "the term 'a' of `forward` is int; return a scalar tensor"),
        ({"a": torch.ones(2)}, r"the term 'a' of `forward` is a tensor of shape \(2,\)"),
    ],
)
def test_terms_that_are_no_scalars_are_refused(terms: Any, message: str) -> None:
    batch, targets = FakeLoader().batch(0, 0)
    distillation = Distillation(small_detector(), [Broken(terms)])
    with pytest.raises(UserError, match=f"method broken: {message}"):
        distillation(batch, targets, teacher_output=small_detector().observe(batch))


def test_a_builder_that_returns_no_detector_is_refused() -> None:
    DETECTORS["own"] = DetectorRecord(lambda *arguments: torch.nn.Identity(), "")
    with pytest.raises(UserError, match="'own:x': its builder returned Identity without info, observe, detect"):
        build("own:x", ["a"])


def test_a_format_that_returns_no_contents_is_refused(tmp_path: Path) -> None:
    FORMATS["own"] = Format("own", lambda folder: folder, lambda folder, faults: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(UserError, match=r"FORMATS\['own'\]\.read returned NoneType"):
        open_data(DataConfig(path=str(tmp_path)))


# Recipes.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"? [a]\n: 3\n", "invalid YAML: line 1: found unhashable key"),
        (b"train: {lr: [}\n", "invalid YAML: line 1: "),
        (b"\xff\n", "invalid YAML: the file is not UTF-8 text"),
        (b"train: 3\n", "field 'train' is 3: write its fields as a mapping"),
        (b"methods: {pkd: }\n", "field 'methods.pkd' is None: write a mapping, `name: value`, or {} if it is empty"),
        (b"model: {strides: 8}\n", "field 'model.strides' is 8: write a list, such as [8, 16, 32]"),
        (b"data: {scale: [1]}\n", "field 'data.scale' is [1]: it has too few values"),
    ],
)
def test_a_wrong_recipe_is_refused_in_plain_words(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "recipe.yml"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(str(file))
    assert str(caught.value).startswith(f"{file}: {message}")


def test_a_folder_without_a_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the folder has no recipe\.yaml; give a run folder or a file"):
        load(str(tmp_path))
