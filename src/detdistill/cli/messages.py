"""Errors of the parser in plain words: the flag, what is wrong, and the remedy."""

from cyclopts import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from detdistill.cli.help import OPEN

FOR_DISTILL = ("--method", "--student", "--teacher")  # flags that `train` does not have


def explain(error: CycloptsError) -> str:
    """The message for an error of the parser."""
    command = " ".join(("detdistill", *(error.command_chain or ())))
    name = "" if error.argument is None else error.argument.name
    if isinstance(error, RepeatArgumentError):
        return f"{error.token.keyword} is given more than once; give it once"
    if isinstance(error, UnusedCliTokensError):
        words = " ".join(error.unused_tokens or ())
        return f"{words!r} belongs to no flag; write --FLAG VALUE (a switch takes no value, or true or false)"
    if isinstance(error, UnknownOptionError):
        return _unknown_option(error, command)
    if isinstance(error, MissingArgumentError):
        written = [
            error.keyword,
            *(token.keyword for token in reversed(error.argument.tokens if error.argument else ())),
        ]
        flag = next((keyword for keyword in written if keyword), None)
        problem = f"{flag} needs a value" if flag else f"{name} is missing"
        return f"{problem}; see `{command} --help`"
    if isinstance(error, CoercionError) and name in OPEN:
        return f"{name}: give the name of an option and its value: {name}.{OPEN[name]}"
    return str(error)


def _unknown_option(error: UnknownOptionError, command: str) -> str:
    flag = error.token.keyword or error.token.value
    if command == "detdistill train" and flag.startswith(FOR_DISTILL):
        return f"`{command}` has no {flag}, because it trains without a teacher; use `detdistill distill`"
    message = str(error)
    return message if "Did you mean" in message else f"{message} See `{command} --help`"
