"""check_pair judges the methods: their terms are finite and fall, and the teacher stays as it is."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from detdistill.detectors.dense.gfl import GFL
from detdistill.methods import Method
from detdistill.run.pairing import build_methods, resolve
from detdistill.testing import check_pair, learn, scene
from detdistill.types import Detector, DetectorOutput
from tests.detectors.builders import CLASSES, tiny

EXAMPLE = scene(len(CLASSES), (64, 96))


@dataclass(frozen=True)
class NoOptions:
    """Options of the methods below."""


class Constant(Method):
    """A method whose only term is always `value`."""

    name = "constant"
    Config = NoOptions
    value = 1.0

    def forward(self, student_output: DetectorOutput, *_: Any) -> dict[str, Tensor]:
        return {"term": 0 * student_output.pyramids["neck"].levels[0].sum() + self.value}


class NotFinite(Constant):
    name = "not_finite"
    value = float("nan")


class ChangingTeacher(GFL):
    """A detector that changes its weights when it runs."""

    def observe(self, *arguments: Any, **options: Any) -> DetectorOutput:
        self.head.scales.data.add_(1.0)
        return super().observe(*arguments, **options)


def build(options: dict, student: Detector, teacher: Detector) -> list[Method]:
    """The methods for the pair, with published options unless `options` sets others."""
    return build_methods(resolve(options, student.info, teacher.info), student.info, teacher.info)


def test_a_total_that_rises_is_no_failure():
    # Both detectors are fresh. GFL's task losses rise at first, because its class targets are the IoUs of its boxes.
    student, teacher = tiny("gfl"), tiny("gfl", seed=1)
    terms = check_pair(student, teacher, build({"crosskd": {}}, student, teacher))
    first, last = terms["total"]
    assert last > first
    assert terms["crosskd"][1] < terms["crosskd"][0]


def test_a_method_whose_terms_do_not_fall_fails():
    student, teacher = tiny("gfl"), tiny("gfl", seed=1)
    message = "the sum of the terms of constant did not fall in 2 steps: from 1 to 1; check the signs"
    with pytest.raises(AssertionError, match=message):
        check_pair(student, teacher, [Constant()], EXAMPLE, steps=2)
    with pytest.raises(AssertionError, match="the sum of the terms of constant did not fall"):
        check_pair(student, teacher, [*build({"pkd": {}}, student, teacher), Constant()], EXAMPLE, steps=2)


def test_a_term_that_is_not_finite_fails():
    student, teacher = tiny("gfl"), tiny("gfl", seed=1)
    with pytest.raises(AssertionError, match="total, not_finite_term, not_finite: not finite after 0 steps"):
        check_pair(student, teacher, [NotFinite()], EXAMPLE, steps=1)
    next(iter(student.parameters())).data.fill_(float("nan"))
    with pytest.raises(AssertionError, match=r"task_classification.*not finite after 0 steps"):
        check_pair(student, teacher, build({"pkd": {}}, student, teacher), EXAMPLE, steps=1)


def test_a_teacher_that_changes_fails():
    student, teacher = tiny("gfl"), tiny("gfl", seed=1)
    teacher.__class__ = ChangingTeacher
    with pytest.raises(AssertionError, match=r"the teacher's tensor 'head.scales' changed"):
        check_pair(student, teacher, build({"pkd": {}}, student, teacher), EXAMPLE, steps=1)


def test_the_arguments_are_left_as_they_are():
    student, teacher = tiny("gfl"), tiny("gfl", seed=1, channels=48)
    methods = build({"pkd": {}, "fitnets": {}}, student, teacher)
    modules = (student, teacher, *methods)
    states = [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]
    check_pair(student, teacher, methods, EXAMPLE, steps=2)
    for module, state in zip(modules, states, strict=True):
        assert module.training
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
        assert all(parameter.grad is None for parameter in module.parameters())


def test_rows_of_learn_hold_the_terms_and_their_sums():
    student, teacher = tiny("gfl"), tiny("gfl", seed=1)
    rows = learn(student, teacher, build({"gid": {}, "gid_ld": {}}, student, teacher), EXAMPLE, steps=1)
    assert len(rows) == 2
    for row in rows:
        terms = {name: value for name, value in row.items() if name not in ("total", "gid", "gid_ld")}
        assert row["total"] == pytest.approx(sum(terms.values()), rel=1e-4)
        # A term of gid_ld starts with "gid_" too, and must not be counted as a term of gid.
        gid_ld = sum(value for name, value in terms.items() if name.startswith("gid_ld_"))
        gid = sum(value for name, value in terms.items() if name.startswith("gid_")) - gid_ld
        assert row["gid"] == pytest.approx(gid, rel=1e-4)
        assert row["gid_ld"] == pytest.approx(gid_ld, rel=1e-4)
        assert gid > 0 and gid_ld > 0
