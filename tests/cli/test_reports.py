"""`report` on the command line."""

from pathlib import Path

import pytest

from tests.run.made_runs import recipe, write_run

from .commands import assert_refused, detdistill


def test_a_page_is_written_and_another_file_is_only_replaced_on_request(
    capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "a", recipe())
    assert detdistill(f"report {folder} --resamples 5") == 0
    assert f"report: {folder}/report.html" in capsys.readouterr().out
    assert detdistill(f"report {folder} --resamples 5") == 0  # its own page is replaced
    again = f"report {folder} --out {folder}/report.html --resamples 5"
    assert detdistill(again) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert detdistill(f"{again} --overwrite") == 0


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("report", ["no runs"]),
        ("report nowhere", ["nowhere", "no such folder"]),
        ("report .", ["no run folder"]),
        ("report a b", ["--out FILE.html"]),
        ("report . --out .", ["--out .", "is a folder"]),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    command: str, parts: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(command, parts, capsys)
    assert list(tmp_path.iterdir()) == []
