"""`detdistill list backbones`."""

from io import StringIO

import pytest
from rich.console import Console

from detdistill.cli import backbones as listed
from detdistill.run.backbones import describe

from .commands import detdistill


def rows(text: str) -> dict[str, list[str]]:
    """The words of each printed line, by the first word."""
    return {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}


def test_models_that_match_a_pattern_are_listed_with_their_facts(capsys: pytest.CaptureFixture) -> None:
    assert detdistill("list backbones mobilenetv4_conv_small* --image-size 64,96") == 0
    printed = rows(capsys.readouterr().out)
    names = ["mobilenetv4_conv_small", "mobilenetv4_conv_small_035", "mobilenetv4_conv_small_050"]
    assert list(printed)[:4] == ["backbone", *names]
    facts = describe("mobilenetv4_conv_small", (64, 96))
    expected = [f"{facts.parameters / 1e6:.2f}M", f"{facts.operations / 1e9:.2f}G", "2,4,8,16,32", "imagenet", "yes"]
    assert printed["mobilenetv4_conv_small"][1:] == expected
    assert printed["mobilenetv4_conv_small_035"][4:] == ["0.5", "no"]


def test_a_model_that_cannot_serve_has_the_reason(capsys: pytest.CaptureFixture) -> None:
    assert detdistill("list backbones efficientformerv2_s0") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("efficientformerv2_s0"))
    assert line.split()[1:4] == ["-", "-", "-"]
    assert line.endswith("can't serve: accepts images of one size only")


def test_without_a_pattern_a_small_backbone_of_each_family_is_listed(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detdistill.detectors.timm.examples.EXAMPLES", ("resnet10t", "lcnet_035"))
    assert detdistill("list backbones --image-size 64") == 0
    printed = capsys.readouterr().out
    assert list(rows(printed))[1:3] == ["resnet10t", "lcnet_035"]
    assert "give a pattern: detdistill list backbones 'resnet*'" in " ".join(printed.split())
    assert "64 x 64" in printed


def test_more_models_than_are_run_are_told(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listed, "MOST", 2)
    assert detdistill("list backbones lcnet_0*") == 0
    printed = capsys.readouterr().out
    assert list(rows(printed))[1:3] == ["lcnet_035", "lcnet_050"]
    assert "1 more match: narrow the pattern" in printed


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("list backbones resnt18", "list backbones resnt18: no timm model matches; did you mean 'resnet18'?"),
        ("list methods --image-size 320", "list methods --image-size: only `list backbones` reads it; leave it out"),
        ("list backbones --image-size big", "field 'data.image_size' is 'big'"),
    ],
)
def test_wrong_input_is_refused(command: str, message: str, capsys: pytest.CaptureFixture) -> None:
    assert detdistill(command) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("width", [80, 120])
def test_all_small_backbones_fit_a_terminal_with_whole_numbers(width: int) -> None:
    console = Console(force_terminal=True, width=width, color_system=None, record=True, file=StringIO())
    listed.backbones(None, 640, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    assert "17.91G" in text and "2,4,8,16,32" in text
    assert ("imagenet" in text) == (width == 120)


def test_the_list_fits_a_terminal() -> None:
    console = Console(force_terminal=True, width=120, color_system=None, record=True, file=StringIO())
    listed.backbones("eva02_tiny_patch14_224", 64, console)
    lines = [line for line in console.export_text().splitlines() if "running models" not in line]  # it is erased
    assert max(map(len, lines)) <= 120
    assert any("14/16" in line for line in lines)
