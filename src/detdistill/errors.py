"""What goes wrong through the user's input, as against a defect of ours."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The input is wrong. The message is one line: file, field, remedy. The command line prints it and exits with 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known word closest to `word`, or an empty string."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""
