"""What `problems` reports about the class of a user's method."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import pytest
from torch import Tensor, nn

from detdistill.methods import METHODS
from detdistill.methods.method import Method, problems
from detdistill.types import DetectorInfo, DetectorOutput, Need, Targets, TrainState


@dataclass(frozen=True)
class SmallConfig:
    weight: float = 1.0


class Small(Method):
    """A method that defines only what it must."""

    name = "small"
    Config = SmallConfig

    @classmethod
    def build(cls, config: SmallConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        return cls()

    def forward(
        self, student_output: DetectorOutput, teacher_output: DetectorOutput, targets: Targets, state: TrainState
    ) -> dict[str, Tensor]:
        return {}


def variant(**attributes: Any) -> type:
    """Returns a subclass of Small with these attributes."""
    return type("Variant", (Small,), attributes)


@pytest.mark.parametrize("name", METHODS)
def test_the_packages_methods_have_no_problems(name: str):
    assert problems(METHODS[name]) == []
    assert METHODS[name].name == name


def test_a_method_needs_only_a_name_a_config_build_and_forward():
    assert problems(Small) == []
    assert (Small.group, Small.paper, Small.reads) == ("your own methods", "", "")
    assert Small.need == Small.student_need == Need()


def test_everything_that_an_empty_method_lacks_is_listed_at_once():
    class Empty(Method):
        pass

    assert problems(Empty) == [
        "`name` is missing",
        "`Config` is missing: a dataclass of the options",
        "`build` is missing: a classmethod (config, student, teacher)",
        "`forward` is missing: a function of (self, student_output, teacher_output, targets, state)",
    ]


@pytest.mark.parametrize("base", [object, nn.Module])
def test_a_class_that_is_not_a_method_has_this_one_problem(base: type):
    assert problems(type("Other", (base,), {})) == ["it is not a subclass of detdistill.methods.Method"]


def test_an_instance_is_not_a_class():
    (problem,) = problems(Small())  # type: ignore[arg-type]
    assert problem.endswith("is not a class")


class NoDataclass:
    weight: ClassVar[float] = 1.0


def not_a_classmethod(self: Method, config: Any, student: Any, teacher: Any) -> Method:
    return self


def two_parameters(self: Method, student_output: Any, teacher_output: Any) -> dict[str, Tensor]:
    return {}


def renamed_parameters(self: Method, mine: Any, theirs: Any, targets: Any, state: Any) -> dict[str, Tensor]:
    return {}


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        ({"name": 3}, "`name` is 3, not a string"),
        ({"name": ""}, "`name` is '': use letters, digits and underscores only"),
        ({"name": "my-method"}, "`name` is 'my-method': use letters, digits and underscores only"),
        ({"group": None}, "`group` is missing"),
        ({"reads": ("neck",)}, "`reads` is ('neck',), not a string"),
        ({"Config": NoDataclass}, "`Config` is not a dataclass"),
        ({"Config": SmallConfig()}, "`Config` is not a dataclass"),
        ({"build": not_a_classmethod}, "`build` is not a classmethod"),
        ({"build": classmethod(lambda cls, config: cls())}, "`build` cannot be called with (config, student, teacher)"),
        (
            {"forward": two_parameters},
            "the parameters of `forward` are (self, student_output, teacher_output), "
            "not (self, student_output, teacher_output, targets, state)",
        ),
        (
            {"forward": renamed_parameters},
            "the parameters of `forward` are (self, mine, theirs, targets, state), "
            "not (self, student_output, teacher_output, targets, state)",
        ),
    ],
)
def test_each_fault_is_named(attributes: dict[str, Any], problem: str):
    assert problems(variant(**attributes)) == [problem]
