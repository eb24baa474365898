"""The command that installs the completion of commands and flags in a shell."""

from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.completion.detect import ShellDetectionError, detect_shell

from detdistill.cli.app import app
from detdistill.cli.common import GROUPS
from detdistill.cli.help import COMMON
from detdistill.cli.output import make_console
from detdistill.errors import UserError

Shell = Literal["bash", "zsh", "fish"]


@app.command(name="--install-completion", sort_key=13, usage="Usage: detdistill --install-completion [SHELL] [--show]")
def install_completion(
    shell: Annotated[Shell | None, Parameter(help="your shell [default: the one that runs this command]")] = None,
    /,
    *,
    show: Annotated[
        bool, Parameter(help="print the script and install nothing", negative=(), group=GROUPS[COMMON])
    ] = False,
) -> None:
    """Let the Tab key complete commands and flags in bash, zsh or fish."""
    chosen = shell or _running_shell()
    if show:
        make_console().out(app.generate_completion(shell=chosen), highlight=False)
        return
    try:
        path = app.install_completion(shell=chosen)
    except OSError as error:
        remedy = "print the script with --show, and save it where your shell reads it"
        raise UserError(f"--install-completion {chosen}: {error}; {remedy}") from None
    make_console().print(f"written to {path}; it works in every new {chosen}")


def _running_shell() -> Shell:
    try:
        found = detect_shell()
    except ShellDetectionError:
        found = None
    if found not in ("bash", "zsh", "fish"):
        raise UserError("--install-completion: the shell is not known; name it: bash, zsh or fish")
    return found
