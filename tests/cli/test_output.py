"""--json and --quiet: what a command prints for machines, and what it leaves out."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detdistill.cli.output import STDOUT, opened
from detdistill.errors import UserError
from detdistill.inspection import machine
from detdistill.inspection.check import Check
from tests.run.recipes import read_json

from .commands import detdistill, train


def test_json_is_all_that_is_on_stdout(capsys: pytest.CaptureFixture) -> None:
    with opened(STDOUT, quiet=False) as output:
        output.console.print("a note")
        print("a print of some library")
        output.end({"AP": None, "name": "a :cat: [b]"}, "one line")
    printed = capsys.readouterr()
    assert printed.out == '{"AP": null, "name": "a :cat: [b]"}\n'
    assert printed.err == "a note\na print of some library\n"


def test_json_goes_to_a_file_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "result.json"
    with opened(file, quiet=False) as output:
        output.end({"AP": 1.5}, "one line")
    assert read_json(file) == {"AP": 1.5}
    assert capsys.readouterr().out == f"written to {file}\n"


@pytest.mark.parametrize("name", ["", "photo.jpg"])
def test_json_replaces_no_file_of_another_kind(name: str, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with (
        pytest.raises(UserError, match=r"--json .*for JSON on stdout, give --json at the end"),
        opened(tmp_path / name, quiet=False),
    ):
        pass


def test_quiet_leaves_warnings_on_stderr_and_one_line(capsys: pytest.CaptureFixture) -> None:
    with opened(None, quiet=True) as output:
        output.console.print("step 1")
        output.console.print("warning: the teacher is weak")
        with output.console.status("working"):
            output.end({"AP": 1.5}, "runs/a: AP 1.5")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("runs/a: AP 1.5\n", "warning: the teacher is weak\n")


def test_quiet_with_json_prints_the_json_only(capsys: pytest.CaptureFixture) -> None:
    with opened(STDOUT, quiet=True) as output:
        output.console.print("step 1")
        output.end([1], "one line")
    assert capsys.readouterr() == ("[1]\n", "")


def test_only_the_main_process_prints_the_result(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with opened(STDOUT, quiet=False) as output:
        output.end({}, "one line")
    assert capsys.readouterr() == ("", "")


def test_a_name_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", text := io.StringIO())
    with opened(None, quiet=False) as output:
        output.console.print("class :cat: [bold]")
    assert text.getvalue() == "class :cat: [bold]\n"


# Commands.


def result_of(command: str, capsys: pytest.CaptureFixture) -> Any:
    """The JSON on stdout of a command that succeeds."""
    capsys.readouterr()
    assert detdistill(command) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_ends_with_its_folder_and_metrics(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "run"
    assert train(f"--max-steps 1 --out {out} --json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"out": str(out), "metrics": read_json(out / "metrics.json")}
    assert "step 1/1" in printed.err
    assert train(f"--resume --max-steps 1 --out {out} --quiet") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{out}: AP ") and printed.out.count("\n") == 1


def test_commands_for_a_trained_detector_print_their_results(
    teacher_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    metrics = result_of(f"evaluate --model {teacher_run} --json", capsys)
    assert metrics["AP"] == read_json(teacher_run / "metrics.json")["AP"]
    image = tmp_path / "image.png"
    Image.new("RGB", (64, 64)).save(image)
    found = result_of(f"predict {image} --model {teacher_run} --out {tmp_path}/boxes --json", capsys)
    assert found == {"out": f"{tmp_path}/boxes", "predictions": read_json(tmp_path / "boxes/predictions.json")}
    page = result_of(f"report {teacher_run} --out {tmp_path}/page.html --resamples 5 --json", capsys)
    assert page == {"page": f"{tmp_path}/page.html"}
    inspected = result_of("inspect shapes:8 --image-size 64 --json", capsys)
    assert inspected["splits"]["train"]["images"] > 0


def test_lists_and_checks_print_their_results(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "bccd" in [entry["name"] for entry in result_of("list recipes --json", capsys)["recipes"]]
    assert result_of("list methods pkd --json", capsys)["paper"] == "arXiv:2207.02039"
    monkeypatch.setattr(machine, "CHECKS", {"disk": lambda: iter([Check("disk", "problem", "it is full", "")])})
    capsys.readouterr()
    assert detdistill("doctor --json") == 1
    assert json.loads(capsys.readouterr().out)["checks"][0]["state"] == "problem"
    assert detdistill("doctor --quiet") == 1
    printed = capsys.readouterr()
    assert printed.err.split() == ["problem", "disk", "it", "is", "full"]
    assert printed.out.count("\n") == 1


def test_an_error_prints_nothing_on_stdout(capsys: pytest.CaptureFixture) -> None:
    assert detdistill("list methods pkdd --json") == 2
    assert capsys.readouterr().out == ""
