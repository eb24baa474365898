"""What --help and --help-all show."""

import io
import re
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from pydantic.fields import FieldInfo
from rich.console import Console

from detdistill.cli import app
from detdistill.cli.app import choose_help
from detdistill.cli.common import COMMON_FLAGS
from detdistill.cli.help import metavar, shown_default
from detdistill.recipe import load
from detdistill.run import inspecting_pair

COMMANDS = [name.replace("show", "list") for name in COMMON_FLAGS]


def page(command: str, width: int = 200) -> str:
    """The help that `detdistill COMMAND` prints, for a terminal of some width. The command ends with a help flag."""
    words = command.split()
    choose_help(words)
    console = Console(file=io.StringIO(), width=width, record=True)
    app.help_print(words[:-1], console=console)
    return console.export_text()


def flags_in(text: str) -> list[str]:
    """The flags that begin a row of a panel, without their values."""
    return re.findall(r"^│ (?:\* {2}| {3})?(--[a-z.-]+)", text, flags=re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_shows_the_common_flags_in_their_order(command: str) -> None:
    shown = [flag.removeprefix("--") for flag in flags_in(page(f"{command} --help"))]
    assert [flag.rstrip(".") for flag in shown] == list(COMMON_FLAGS[command.replace("list", "show")])
    assert len(shown) <= 18


@pytest.mark.parametrize("command", COMMANDS)
def test_all_help_shows_every_flag_and_names_its_type(command: str) -> None:
    whole, short = page(f"{command} --help-all"), page(f"{command} --help")
    assert len(flags_in(whole)) >= len(flags_in(short))
    assert "--help-all shows all flags" in short and "--help-all shows all flags" not in whole
    assert not re.findall(r"\b(STR|INT|CHOICE|TEXT|False)\b", whole)


def test_only_the_whole_help_has_dotted_names() -> None:
    assert "--data.path" not in page("train --help") and "--data.flip" not in page("train --help")
    assert "--data.path --data PATH" in page("train --help-all")
    assert "--data.flip FLOAT" in page("train --help-all")


@pytest.mark.parametrize("width", [80, 120])
def test_the_help_fits_the_terminal(width: int) -> None:
    for command in ("--help", *(f"{name} --help" for name in COMMANDS)):
        assert max(map(len, page(command, width).splitlines())) <= width


def test_the_commands_stand_in_the_order_of_the_work() -> None:
    assert re.findall(r"^│ (\w+)", page("--help"), flags=re.MULTILINE) == COMMANDS


def test_a_command_shows_only_what_it_reads() -> None:
    evaluate, export = page("evaluate --help-all"), page("export --help-all")
    assert "--data.flip" not in evaluate and "--data.mosaic" not in export
    assert "--data.val.images PATH" in evaluate and "--data.val-fraction FLOAT|none" in export
    assert "--batch-size N|auto" in page("train --help")
    assert "--batch-size N " in page("compare --help")


def test_the_defaults_of_the_demo_are_those_of_its_recipes() -> None:
    text = page("demo --help-all")
    teacher, student = load("demo-teacher").train, load("demo").train
    for name in ("epochs", "lr"):
        values = [getattr(recipe, name) for recipe in (teacher, student)]
        both = f"{values[0]} for the teacher, {values[1]} for the students"
        assert f"[default: {values[0] if values[0] == values[1] else both}]" in text
    assert "[default: 128,160]" in text and "[default: 640]" not in text


def test_the_defaults_of_inspect_are_what_happens() -> None:
    assert f"[default: {inspecting_pair.SAMPLED}, which is the most here]" in page("inspect --help-all")


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (int, "N"),
        (float | None, "FLOAT|none"),
        (Annotated[int, Field(ge=1)] | Literal["auto"], "N|auto"),
        (Literal["stop", "skip"], "stop|skip"),
        (tuple[int, ...], "N,..."),
        (tuple[float, float], "FLOAT,FLOAT"),
    ],
)
def test_a_value_is_named_by_its_type(annotation: Any, expected: str) -> None:
    assert metavar("train.new", FieldInfo(annotation=annotation)) == expected


def test_a_default_is_shown_as_it_is_typed() -> None:
    assert shown_default((8, 16)) == "[default: 8,16]"
    assert shown_default(True) == "[default: true]"
    assert shown_default(0) == "[default: 0]"
    assert [shown_default(value) for value in (None, "", ())] == ["", "", ""]
