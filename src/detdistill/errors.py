"""Errors caused by the user's input, in contrast to defects of the package, and words for messages."""

import difflib
from collections.abc import Iterable

NAMED = 5  # names in a message before "and N more"


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


def one_line(error: BaseException, most: int | None = None) -> str:
    """The message of an error on one line, at most `most` characters of it, or its type if it has no message."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def plural(count: int, noun: str, many: str = "") -> str:
    """The count with its noun, such as `1 image`, `3 images` or `2 boxes`.

    many: the plural, if it is not the noun with `s`, or with `es` after s and x.
    """
    regular = f"{noun}es" if noun.endswith(("s", "x")) else f"{noun}s"
    return f"{count} {noun if count == 1 else many or regular}"


def some(names: Iterable[str], most: int = NAMED) -> str:
    """The first names, and the number of the others: `a.jpg, b.jpg and 3 more`."""
    listed = list(names)
    more = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {more} more" if more > 0 else "")
