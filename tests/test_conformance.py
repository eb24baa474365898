"""A quick share of `bench/conformance.py`: every detector with a method it takes, and all of them refused what they can't serve."""

import copy
import runpy
from functools import cache
from pathlib import Path

import pytest

from detdistill.detectors.protocol import Detector
from detdistill.errors import UserError
from detdistill.methods import METHODS
from detdistill.pairing import build_methods, resolve
from detdistill.testing import check_pair, learn, scene
from detdistill.types import DetectorInfo
from tests.detectors.builders import CLASSES, DENSE, tiny

SET_BASED = ("faster_rcnn", "deformable_detr")  # no dense head for a method to compare
EXAMPLE = scene(len(CLASSES), (64, 96))
STEPS = 3


@cache
def begun(head: str, seed: int = 1) -> Detector:
    """A detector that has begun to learn the batch: a teacher says something, and a student's own loss falls from here on."""
    detector = tiny(head, seed=seed)
    learn(detector, None, [], EXAMPLE, steps=15 if head in DENSE else 0, lr=1e-3)
    return detector


def built(options: dict, student: DetectorInfo, teacher: DetectorInfo) -> list:
    return build_methods(resolve(options, student, teacher), student, teacher)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("head", DENSE)
def test_dense_heads_learn_by_every_method(head: str, method: str):
    student, teacher = begun(head, seed=0), begun(head)
    moved = check_pair(student, teacher, built({method: {}}, student.info, teacher.info), EXAMPLE, steps=STEPS)
    assert moved["total"][0] > moved[method][0] > 0


@pytest.mark.parametrize("head", SET_BASED)
def test_pkd_teaches_detectors_without_dense_heads_and_the_others_refuse_them(head: str):
    student, teacher = tiny(head), begun(head)
    check_pair(student, teacher, built({"pkd": {}}, student.info, teacher.info), EXAMPLE, steps=STEPS)
    for method in set(METHODS) - {"pkd"}:
        with pytest.raises(UserError, match=f"method {method}: the student \\({head}\\) has no"):
            built({method: {}}, student.info, teacher.info)


@pytest.mark.parametrize(("head", "teacher_head"), [("fcos", "gfl"), ("retinanet", "atss"), ("atss", "fcos")])
def test_other_families_teach_by_features_and_by_their_own_head_together(head: str, teacher_head: str):
    student, teacher = tiny(head, channels=48), begun(teacher_head)  # other widths: connectors
    methods = built({"pkd": {}, "crosskd": {}}, student.info, teacher.info)
    check_pair(student, teacher, methods, EXAMPLE, steps=STEPS)


def test_a_method_that_can_not_fall_is_told():
    student, teacher = tiny("gfl"), begun("gfl")
    with pytest.raises(AssertionError, match="total did not fall in 0 steps"):
        check_pair(student, teacher, built({"pkd": {}}, student.info, teacher.info), EXAMPLE, steps=0)
    broken = copy.deepcopy(student)
    next(iter(broken.parameters())).data.fill_(float("nan"))
    with pytest.raises(AssertionError, match="not finite after 0 steps"):
        check_pair(broken, teacher, built({"pkd": {}}, student.info, teacher.info), EXAMPLE, steps=1)


def test_the_bench_writes_its_table_and_fails_with_a_failing_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bench = runpy.run_path(str(Path(__file__).parents[1] / "bench" / "conformance.py"))
    files = [tmp_path / "cells.json", tmp_path / "cells.md"]
    argv = ["conformance.py", "--detector", "faster_rcnn", "--method", "crosskd", "--json", str(files[0]), "--markdown", str(files[1])]
    monkeypatch.setattr("sys.argv", argv)
    monkeypatch.setitem(bench["main"].__globals__, "begun", lambda head, *_: begun(head))
    assert bench["main"]() == 0
    assert "| faster_rcnn | faster_rcnn | no [1] |" in files[1].read_text()
    monkeypatch.setitem(bench["main"].__globals__, "check_pair", lambda *_, **__: 1 / 0)
    monkeypatch.setattr("sys.argv", ["conformance.py", "--detector", "gfl", "--method", "pkd", "--json", str(files[0])])
    assert bench["main"]() == 1
    assert "ZeroDivisionError" in files[0].read_text()
