"""The role of a split, by its name: train, val or test."""

import re
from collections.abc import Iterable

WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
ROLES = {word: role for role, words in WORDS.items() for word in words}


def role(name: str, *, exact: bool = False) -> str | None:
    """train, val or test, or None if the name has no such word or words of several roles.

    A word is a run of letters in any case, so `Valid`, `cards_train` and `test2017` have a role, and `trainval` and
    `test-dev` have none. exact: the name may have no other word.
    """
    words = re.findall(r"[^\W\d_]+", name.casefold())
    if exact and len(words) != 1:
        return None
    roles = {ROLES[word] for word in words if word in ROLES}
    return roles.pop() if len(roles) == 1 else None


def with_role(names: Iterable[str], wanted: str | None, *, exact: bool) -> str | None:
    """The only one of these names that has the role `wanted`, or None."""
    found = [name for name in names if wanted is not None and role(name, exact=exact) == wanted]
    return found[0] if len(found) == 1 else None
