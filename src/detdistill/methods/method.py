"""The base class of all distillation methods, and the checks that methods share.

A method reads typed outputs (`detdistill.types`). It imports no detector.
"""

import inspect
import re
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field
from torch import Tensor, nn

from detdistill.errors import UserError
from detdistill.types import DetectorInfo, DetectorOutput, Need, Targets, TrainState

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # factor of a loss term
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]  # divides logits

TEXTS = ("name", "group", "paper", "reads")  # attributes of a method that are listed
FORWARD = ("self", "student_output", "teacher_output", "targets", "state")  # parameters of `Method.forward`


class Method(nn.Module):
    """The base class of all methods. A method defines `name`, `Config`, `build` and `forward`; the rest has defaults.

    The parameters of the module are the learned parts of the method, for example connectors. They train with the
    student and are not saved with it.

    name: key in METHODS and prefix of the loss terms.
    Config: dataclass of the options.
    group: heading under which `detdistill list methods` shows the method.
    paper: source of the method.
    copies, requires: text: what the student copies, and what student and teacher need for it.
    reads: text: what the method reads of the outputs.
    learns: text: the learned parts; empty if there are none.
    gain: published AP on COCO, plain student to distilled student (teacher); empty if no published value could be
        verified.
    unlabeled: True if the method reads no targets: neither ground truth nor an assignment. It then also serves batches
        without targets.
    need: parts of the teacher's output that the method reads.
    student_need: parts of the student's output that the method reads and the task losses do not compute anyway.
    """

    name: ClassVar[str]
    Config: ClassVar[type[Any]]
    group: ClassVar[str] = "your own methods"
    paper: ClassVar[str] = ""
    copies: ClassVar[str] = ""
    requires: ClassVar[str] = ""
    reads: ClassVar[str] = ""
    learns: ClassVar[str] = ""
    gain: ClassVar[str] = ""
    unlabeled: ClassVar[bool] = False
    need: Need = Need()
    student_need: Need = Need()

    @classmethod
    def build(cls, config: Any, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """The method for this pair of detectors. config: an instance of `Config`.

        Raises UserError if the method cannot serve the pair. The message names what is missing and a remedy.
        """
        raise TypeError(f"{cls.__name__} does not define build")

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """The weighted loss terms, each of shape (). Keys are the names of the terms without the name of the method.

        Gradient flows to the student only.
        """
        raise TypeError(f"{type(self).__name__} does not define forward")


def require(condition: bool, method: str, problem: str, remedy: str) -> None:
    """Raises UserError with the message `method NAME: PROBLEM; REMEDY` if `condition` is false."""
    if not condition:
        raise UserError(f"method {method}: {problem}; {remedy}")


def problems(method: type) -> list[str]:
    """Returns one message for each fault in the class of a user's method; empty if there is none.

    The function checks the base class, the texts `name`, `group`, `paper` and `reads`, the dataclass `Config`, and the
    signatures of `build` and `forward`. It does not build the method.
    """
    if not isinstance(method, type):
        return [f"{method!r} is not a class"]
    if not issubclass(method, Method):
        return ["it is not a subclass of detdistill.methods.Method"]
    messages: list[str] = []
    for check in (_text_problems, _config_problems, _build_problems, _forward_problems):
        messages += check(method)
    return messages


def _text_problems(method: type) -> list[str]:
    messages = []
    for attribute in TEXTS:
        text = getattr(method, attribute, None)
        if text is None:
            messages.append(f"`{attribute}` is missing")
        elif not isinstance(text, str):
            messages.append(f"`{attribute}` is {text!r}, not a string")
        elif attribute == "name" and not text.isidentifier():  # it becomes a part of flags: --methods.NAME.OPTION
            messages.append(f"`name` is {text!r}: use letters, digits and underscores only")
    return messages


def _config_problems(method: type) -> list[str]:
    config = getattr(method, "Config", None)
    if config is None:
        return ["`Config` is missing: a dataclass of the options"]
    return [] if isinstance(config, type) and is_dataclass(config) else ["`Config` is not a dataclass"]


def _build_problems(method: type) -> list[str]:
    build = inspect.getattr_static(method, "build", None)
    if build is None or build is vars(Method)["build"]:
        return ["`build` is missing: a classmethod (config, student, teacher)"]
    if not isinstance(build, classmethod | staticmethod):
        return ["`build` is not a classmethod"]
    try:
        inspect.signature(build.__get__(None, method)).bind("config", "student", "teacher")
    except TypeError:
        return ["`build` cannot be called with (config, student, teacher)"]
    return []


def _forward_problems(method: type) -> list[str]:
    forward = getattr(method, "forward", None)
    if not callable(forward) or forward in (Method.forward, nn.Module.forward):
        return [f"`forward` is missing: a function of ({', '.join(FORWARD)})"]
    parameters = tuple(inspect.signature(forward).parameters)
    if parameters == FORWARD:
        return []
    return [f"the parameters of `forward` are ({', '.join(parameters)}), not ({', '.join(FORWARD)})"]


def option_meanings(config: type) -> dict[str, str]:
    """The meaning of each option of a method, read from the docstrings of its `Config` and of the classes it extends.

    A docstring has lines `name: meaning` or `name, name: meaning`; the lines up to the next such line continue it.
    Options without a line have the meaning "".
    """
    names = {item.name for item in fields(config)}
    meanings = dict.fromkeys((item.name for item in fields(config)), "")
    for kind in reversed(config.__mro__):
        current: list[str] = []
        for line in (vars(kind).get("__doc__") or "").splitlines():
            match = re.fullmatch(r"\s*((?:\w+, )*\w+): (.*)", line)
            if match and set(match[1].split(", ")) <= names:
                current = match[1].split(", ")
                meanings |= dict.fromkeys(current, match[2].strip())
            elif not line.strip() or line.lstrip().startswith("The other"):
                current = []
            else:
                meanings |= {name: f"{meanings[name]} {line.strip()}" for name in current}
    return meanings
