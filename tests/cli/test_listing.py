"""The lists of detectors, methods and recipes, and everything about one of them."""

from io import StringIO

import pytest
from rich.console import Console

from detdistill.cli import index
from detdistill.cli.listing import heads_in_words, listing
from detdistill.methods import METHODS, by_group

from .commands import detdistill


def rows(text: str) -> dict[str, list[str]]:
    """The words of each printed line, by the first word."""
    return {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("detectors", ["gfl:BACKBONE", "torchvision:fcos"]),
        ("methods", ["pkd", "2306.11369", "neck"]),
        ("recipes", ["demo-teacher", "small", "under 1 M parameters"]),
    ],
)
def test_a_list_has_the_names_and_descriptions(what: str, parts: list[str], capsys: pytest.CaptureFixture) -> None:
    assert detdistill(f"list {what}") == 0
    printed = capsys.readouterr().out
    assert [part for part in parts if part not in printed] == []


@pytest.mark.parametrize("width", [80, 120, 200])
def test_lists_fit_the_width_of_the_terminal(width: int) -> None:
    console = Console(
        force_terminal=True, width=width, color_system=None, soft_wrap=True, markup=False, record=True, file=StringIO()
    )
    for what in ("methods", "detectors", "recipes"):
        listing(what, None, console)
    for name in ("pkd", "fgfi", "crosskd"):
        listing("methods", name, console)
    for name in ("gfl", "adamixer", "deformable_detr"):
        listing("detectors", name, console)
    printed = console.export_text()
    assert max(map(len, printed.splitlines())) <= width
    assert all(group in printed for group in by_group())
    # The paper is a column of a wide list only.
    assert ("arXiv:2207.02039\n" in printed.split("dense predictions")[0]) == (width == 200)


def test_in_a_pipe_the_list_of_methods_has_one_line_per_method(capsys: pytest.CaptureFixture) -> None:
    assert detdistill("list methods") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(METHODS)]] == list(METHODS)


def test_heads_are_summed_up_in_words() -> None:
    groups = {"all", "dense", "RoI", "dense, RoI", "queries", "learned queries", "queries except adamixer"}
    assert {heads_in_words(entry["heads"]) for entry in index.methods()} == groups | {"gfl", "d_fine"}


def test_the_details_of_a_method_are_printed(capsys: pytest.CaptureFixture) -> None:
    assert detdistill("list methods pkd") == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("2207.02039", "least_positions", "16", "warmup_steps"))
    assert any(line.split()[:2] == ["weight", "6.0"] and "beside crosskd" in line for line in printed.splitlines())


def test_the_details_of_a_detector_are_its_options_with_defaults(capsys: pytest.CaptureFixture) -> None:
    assert detdistill("list detectors adamixer") == 0
    printed = capsys.readouterr().out
    assert rows(printed)["--model.options.groups"][1] == "4"
    assert rows(printed)["--model.options.in-points"][1] == "32"
    assert rows(printed)["--model.queries"][1] == "300"
    assert "--model.edge-bins" not in printed and "--model.encoder-layers" not in printed
    assert "queries: learned parameters" in printed
    assert "channels are sampled and mixed in this many separate groups." in " ".join(printed.split())
    assert detdistill("list detectors gfl") == 0
    printed = capsys.readouterr().out
    assert rows(printed)["--model.edge-bins"][1] == "17"
    assert rows(printed)["--model.neck"][1] == "fpn"
    assert rows(printed)["--model.depthwise"][1] == "false"
    assert rows(printed)["--model.nms-threshold"][1] == "none"
    assert "--model.options" not in printed and "--model.queries" not in printed
    assert "default strides: 8, 16, 32, 64, 128" in printed


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("list methods pkdd", "list methods pkdd: there is no such method; did you mean 'pkd'?"),
        ("list detectors adamixr", "list detectors adamixr: there is no such detector; did you mean 'adamixer'?"),
        ("list recipes demo", "list recipes demo: only methods and detectors have details; leave out demo"),
    ],
)
def test_an_unknown_name_is_refused_with_a_similar_one(
    command: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    assert detdistill(command) == 2
    assert message in capsys.readouterr().err


def test_names_may_have_dashes(capsys: pytest.CaptureFixture) -> None:
    assert detdistill("list methods crosskd-roi") == 0
    assert detdistill("list detectors faster-rcnn") == 0
    assert "--model.rois" in capsys.readouterr().out
