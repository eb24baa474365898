"""Methods, detectors and data formats of the user's own: what a file adds, and what is refused."""

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from textwrap import dedent

import pytest

from detdistill.data import open_data
from detdistill.data.layout import FORMATS
from detdistill.detectors.registry import DETECTORS
from detdistill.errors import UserError
from detdistill.methods import METHODS
from detdistill.methods.pkd import PKD
from detdistill.recipe import DataConfig
from detdistill.run import pairing, plugins
from detdistill.run.plugins import GROUP, REGISTRIES, load_plugins
from tests.cli.commands import SMALL, detdistill

from .recipes import MODEL

METHOD = '''
from dataclasses import dataclass

import torch

from detdistill.methods import METHODS, Method
from detdistill.types import Need


@dataclass(frozen=True)
class MeanConfig:
    """weight: weight of the term."""

    weight: float = 1.0


class MeanMethod(Method):
    """The squared difference of the means of the finest neck levels. Terms: `mean`."""

    name = "mean_method"
    reads = "means of neck features"
    paper = "not published"
    Config = MeanConfig
    need = student_need = Need(pyramids=frozenset({"neck"}))

    def __init__(self, config):
        super().__init__()
        self.config = config

    @classmethod
    def build(cls, config, student, teacher):
        return cls(config)

    def forward(self, student_output, teacher_output, targets, state):
        student_mean = student_output.pyramids["neck"].levels[0].mean()
        teacher_mean = teacher_output.pyramids["neck"].levels[0].mean()
        return {"mean": self.config.weight * (student_mean - teacher_mean).square()}


METHODS["mean_method"] = MeanMethod
'''


def entries() -> dict[str, dict[str, object]]:
    """A copy of METHODS, DETECTORS and FORMATS."""
    return {name: dict(registry) for name, registry in REGISTRIES.items()}


@pytest.fixture(autouse=True)
def restored_registries() -> Iterator[None]:
    """Restores the registries after each test, and forgets the plugins that it loaded."""
    before = entries()
    loaded = set(plugins._loaded)
    yield
    for name, registry in REGISTRIES.items():
        registry.clear()
        registry.update(before[name])
    plugins._loaded.clear()
    plugins._loaded.update(loaded)
    for module in [name for name in sys.modules if name.startswith("detdistill_import_")]:
        del sys.modules[module]


def write(folder: Path, text: str, name: str = "plugin.py") -> Path:
    """Write a plugin into the folder, and return its path."""
    path = folder / name
    path.write_text(dedent(text).lstrip("\n"))
    return path


def refusal(file: Path, capsys: pytest.CaptureFixture) -> str:
    """The message with which the command line refuses the file. The registries must be as before."""
    before = entries()
    assert detdistill(f"list recipes --import {file}") == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"detdistill: --import {file}: ")
    assert output.err.count("\n") == 1
    assert entries() == before
    return output.err


# Files that are accepted.


def test_a_method_of_a_file_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairing, "served", lambda methods=METHODS: {name: ["gfl"] for name in methods})  # takes seconds
    file = write(tmp_path, METHOD)
    assert detdistill(f"list methods --import {file}") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mean_method ")]
    assert len(lines) == 1
    assert "means of neck features" in lines[0] and "your own methods" in lines[0]
    assert detdistill(f"list methods mean_method --import {file}") == 0
    assert "paper: not published" in capsys.readouterr().out


def test_a_method_of_a_file_trains_a_student(teacher_run: Path, tmp_path: Path) -> None:
    file, out = write(tmp_path, METHOD), tmp_path / "run"
    command = f"distill --student {MODEL} --teacher {teacher_run} --teacher.sample 0 {SMALL} --max-steps 1"
    own_method = "--method mean-method --methods.mean-method.weight 2"
    assert detdistill(f"{command} --import {file} {own_method} --out {out}") == 0
    assert '"mean_method_mean": ' in (out / "log.jsonl").read_text()
    assert "weight: 2.0" in (out / "recipe.yaml").read_text()


def test_a_method_of_a_file_is_unknown_without_the_file(teacher_run: Path, capsys: pytest.CaptureFixture) -> None:
    assert detdistill(f"distill --student {MODEL} --teacher {teacher_run} {SMALL} --method mean_method") == 2
    assert "unknown method 'mean_method'" in capsys.readouterr().err


def test_a_file_is_loaded_once(tmp_path: Path) -> None:
    text = """
        from pathlib import Path
        with Path(__file__).with_name("loads.txt").open("a") as file:
            file.write("loaded\\n")
        """
    file = write(tmp_path, text + METHOD.replace("\n", "\n" + 8 * " "))
    assert detdistill(f"list recipes --import {file} --import {tmp_path}/../{tmp_path.name}/plugin.py") == 0
    assert detdistill(f"list recipes --import {file}") == 0
    assert (tmp_path / "loads.txt").read_text() == "loaded\n"


def test_two_files_add_their_entries(tmp_path: Path) -> None:
    first = write(tmp_path, METHOD, "first.py")
    second = write(tmp_path, METHOD.replace("mean_method", "second_method"), "second.py")
    assert detdistill(f"list recipes --import {first} --import {second}") == 0
    assert list(METHODS)[-2:] == ["mean_method", "second_method"]


def test_a_detector_of_a_file_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    text = """
        from detdistill.detectors.dense.gfl import GFL
        from detdistill.detectors.registry import DETECTORS, DetectorRecord

        DETECTORS["copy"] = DetectorRecord(builder=GFL, summary="A second GFL.", options=frozenset({"edge_bins"}))
        """
    assert detdistill(f"list detectors copy --import {write(tmp_path, text)}") == 0
    printed = capsys.readouterr().out
    assert "A second GFL." in printed and "--model.edge-bins" in printed
    assert "copy" in DETECTORS


def test_a_data_format_of_a_file_is_read(tmp_path: Path) -> None:
    text = """
        from detdistill.data import shapes
        from detdistill.data.layout import FORMATS, Format


        def find(folder):
            return sorted(folder.glob("*.count"))


        def read(files, faults):
            return shapes.read(f"shapes:{files[0].read_text()}")


        FORMATS["counted"] = Format("counted shapes", find, read)
        """
    load_plugins([write(tmp_path, text)])
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "images.count").write_text("8")
    data = open_data(DataConfig(path=str(folder)))
    assert data.layout == "counted"
    assert len(data.split("train")) == 8
    assert data.notes[0].startswith("data: counted shapes; ")


# Files that are refused.


def test_all_faults_of_a_method_are_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    text = """
        from detdistill.methods import METHODS, Method


        class Incomplete(Method):
            name = "no identifier"
            reads = 3

            def forward(self, student, teacher):
                return {}


        METHODS["incomplete"] = Incomplete
        METHODS["function"] = print
        """
    message = refusal(write(tmp_path, text), capsys)
    parts = [
        "METHODS['incomplete']: `name` is 'no identifier': use letters, digits and underscores only",
        "METHODS['incomplete']: `reads` is 3, not a string",
        "METHODS['incomplete']: `Config` is missing: a dataclass of the options",
        "METHODS['incomplete']: `build` is missing: a classmethod (config, student, teacher)",
        "METHODS['incomplete']: the parameters of `forward` are (self, student, teacher), not (self, student_output, ",
        "METHODS['function']: <built-in function print> is not a class",
    ]
    assert [part for part in parts if part not in message] == [], message


def test_a_method_under_another_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = write(tmp_path, METHOD.replace('METHODS["mean_method"]', 'METHODS["average"]'))
    assert "METHODS['average']: its `name` is 'mean_method'; use the same name" in refusal(file, capsys)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("DETECTORS['own'] = print", "DETECTORS['own']: a DetectorRecord is needed, got builtin_function_or_method"),
        (
            "DETECTORS['own'] = DetectorRecord(builder='dense.missing:GFL', summary='')",
            "DETECTORS['own']: its builder can't be imported (No module named 'detdistill.detectors.dense.missing')",
        ),
        (
            "DETECTORS['own'] = DetectorRecord(builder=3, summary='')",
            "DETECTORS['own']: its builder is not a function",
        ),
        (
            "FORMATS['own'] = Format('Own', print, print, '', 3)",
            "FORMATS['own']: its `search` is not a function",
        ),
        ("FORMATS['own'] = print", "FORMATS['own']: a Format is needed, got builtin_function_or_method"),
    ],
)
def test_a_wrong_detector_or_format_is_refused(
    tmp_path: Path, line: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    imports = "from detdistill.data.layout import *\nfrom detdistill.detectors.registry import *\n"
    assert message in refusal(write(tmp_path, imports + line), capsys)


@pytest.mark.parametrize("line", ["METHODS['pkd'] = METHODS['kd']", "del METHODS['pkd']", "METHODS.clear()"])
def test_a_file_that_changes_a_built_in_entry_is_refused(
    tmp_path: Path, line: str, capsys: pytest.CaptureFixture
) -> None:
    order = list(METHODS)
    message = refusal(write(tmp_path, f"from detdistill.methods import METHODS\n{line}"), capsys)
    assert "it changes the existing entry METHODS['pkd']; choose another name" in message
    assert METHODS["pkd"] is PKD
    assert list(METHODS) == order


@pytest.mark.parametrize(
    ("last_lines", "message"),
    [
        ("1 / 0  # this line", "ZeroDivisionError: division by zero"),
        ("def fail():\n    return missing  # this line\n\nfail()", "NameError: name 'missing' is not defined"),
        ("import json\njson.loads('{')  # this line", "JSONDecodeError: "),  # raised in json, called by the file
        ("if True  # this line\n    pass", "SyntaxError: expected ':'"),
        ("import no_such_module  # this line", "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_an_error_in_a_file_is_reported_with_its_line(
    tmp_path: Path, last_lines: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    file = write(tmp_path, METHOD + last_lines)
    lines = file.read_text().splitlines()
    number = next(number for number, line in enumerate(lines, 1) if line.endswith("# this line"))
    assert f": line {number}: {message}" in refusal(file, capsys)  # entries added before the error are removed


def test_a_corrected_file_is_loaded_after_an_error(tmp_path: Path) -> None:
    file = write(tmp_path, METHOD + "1 / 0")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        load_plugins([file])
    write(tmp_path, METHOD)
    load_plugins([file])
    assert "mean_method" in METHODS


def test_a_missing_file_and_a_file_that_is_not_python_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert "there is no such file; give a Python file" in refusal(tmp_path / "missing.py", capsys)
    assert "there is no such file; give a Python file" in refusal(tmp_path, capsys)
    assert "not a Python file; its name must end in .py" in refusal(write(tmp_path, "", "plugin.txt"), capsys)


# Installed packages.


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    """Make a module with this text the only entry point of the plugins."""
    write(folder, text, "installed_plugin.py")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "installed_plugin", raising=False)
    point = EntryPoint("own", "installed_plugin", GROUP)

    def entry_points(*, group: str) -> list[EntryPoint]:
        return [point] if group == GROUP else []

    monkeypatch.setattr("detdistill.run.plugins.entry_points", entry_points)
    monkeypatch.setattr("detdistill.cli.flags.entry_points", entry_points)


def test_the_entry_points_of_installed_packages_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, METHOD)
    assert detdistill("list recipes") == 0
    assert "mean_method" in METHODS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (METHOD + "1 / 0", "ZeroDivisionError: division by zero"),
        ("import no_such_module", "No module named 'no_such_module'"),
        (METHOD.replace("Config = MeanConfig", "Config = 3"), "`Config` is not a dataclass"),
        (METHOD.replace("@classmethod", ""), "`build` is not a classmethod"),
        (
            "from detdistill.methods import METHODS\nMETHODS['pkd'] = None",
            "it changes the existing entry METHODS['pkd']",
        ),
    ],
)
def test_a_broken_entry_point_only_warns_and_adds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, text: str, message: str
) -> None:
    install(monkeypatch, tmp_path, text)
    before = entries()
    with pytest.warns(UserWarning, match="plugin left out: detdistill.plugins own: ") as warnings:
        assert detdistill("list recipes") == 0
    assert len(warnings) == 1
    assert message in str(warnings[0].message)
    assert "demo-teacher" in capsys.readouterr().out
    assert entries() == before
    assert METHODS["pkd"] is PKD
    assert "yolo" in FORMATS


@pytest.mark.parametrize("option", ["warmup_steps", "decay", "stop", "balance"])
def test_an_option_that_every_method_has_is_refused(option: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "plugin.py"
    file.write_text(
        METHOD.replace("    weight: float = 1.0\n", f"    weight: float = 1.0\n    {option}: float = 1.0\n")
    )
    assert detdistill(f"list methods --import {file}") == 2
    message = capsys.readouterr().err
    assert f"its Config has {option}, which every method has already; choose other names" in message


def test_two_files_of_the_same_name_are_two_modules(tmp_path: Path) -> None:
    files = [tmp_path / folder / "plugin.py" for folder in ("one", "two")]
    for file, name in zip(files, ("first", "second"), strict=True):
        file.parent.mkdir()
        file.write_text(METHOD.replace("mean_method", name))
    load_plugins(files)
    assert METHODS["first"].__module__ != METHODS["second"].__module__
    assert all(sys.modules[METHODS[name].__module__].METHODS is METHODS for name in ("first", "second"))
