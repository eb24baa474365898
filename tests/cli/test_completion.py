"""The completion of commands and flags in a shell."""

import shutil
import subprocess
from pathlib import Path

import pytest

from detdistill.cli import completion

from .commands import detdistill

TRY = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_detdistill
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_has_commands_and_flags(shell: str, capsys: pytest.CaptureFixture) -> None:
    assert detdistill(f"--install-completion {shell} --show") == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("distill", "backbone-weights", "train.warmup-steps"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_a_command_a_flag_and_a_choice(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert detdistill("--install-completion bash --show") == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    for words, expected in (("detdistill dist", "distill"), ("detdistill train --ep", "--epochs")):
        run = ["bash", "-c", TRY, "try", str(script), *words.split()]
        process = subprocess.run(run, capture_output=True, text=True, check=True)
        assert process.stdout.split() == [expected], process.stderr


def test_the_script_is_installed_at_home(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(completion, "detect_shell", lambda: "bash")
    assert detdistill("--install-completion") == 0
    path = Path(capsys.readouterr().out.removeprefix("written to ").partition(";")[0])
    assert path.is_relative_to(tmp_path) and "_detdistill" in path.read_text()
    assert str(path) in (tmp_path / ".bashrc").read_text()


def test_an_unknown_shell_is_told(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "detect_shell", lambda: "powershell")
    assert detdistill("--install-completion") == 2
    assert "name it: bash, zsh or fish" in capsys.readouterr().err
