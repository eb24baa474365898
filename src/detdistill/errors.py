"""Errors caused by the user's input, in contrast to defects of the package."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The user's input is wrong. The message is one line: file or flag, field, problem, remedy.

    The command line prints the message and exits with status 2.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the known word that is most similar to `word`, or '' if none is similar."""
    matches = difflib.get_close_matches(word, list(known), n=10)
    # Swapped characters are the most likely mistake.
    matches.sort(key=lambda match: sorted(match) != sorted(word))
    return f"; did you mean {matches[0]!r}?" if matches else ""
