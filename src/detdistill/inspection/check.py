"""The result of one check of the machine."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Check:
    """The result of one check.

    state: `problem` means that training can't work here. text: what was found. remedy: what to do, if anything.
    """

    name: str
    state: State
    text: str
    remedy: str = ""
