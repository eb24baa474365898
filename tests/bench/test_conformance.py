"""A quick share of `bench/conformance.py`: every detector with a method it takes, and all of them refused what they can't serve."""

import copy
import re
import runpy
from functools import cache
from pathlib import Path

import pytest

from detdistill.detectors.registry import DETECTORS
from detdistill.errors import UserError
from detdistill.methods import METHODS
from detdistill.run.pairing import build_methods, resolve
from detdistill.testing import check_pair, learn, scene
from detdistill.types import Detector, DetectorInfo
from tests.detectors.builders import CLASSES, DENSE, SETS, tiny

WITHOUT_CELLS = ("faster_rcnn", "mask_rcnn", *SETS)  # no dense head for a method to compare
EXAMPLE = scene(len(CLASSES), (64, 96))
STEPS = 3
PINNED = {"mimicking": "gfl"}  # a RetinaNet takes more than three steps for it
LOUD = {
    "clockdistill": {"weight_foreground": 0.1},
    "go_lsd": {"weight": 300.0},
}  # so small here that the labels outweigh it


@cache
def begun(head: str, seed: int = 1) -> Detector:
    """A detector that has begun to learn the batch: a teacher says something, and a student's own loss falls from here on."""
    detector = tiny(head, seed=seed)
    learn(detector, None, [], EXAMPLE, steps=0 if head in SETS and head != "d_fine" else 15, lr=1e-3)
    return detector


def built(options: dict, student: DetectorInfo, teacher: DetectorInfo) -> list:
    return build_methods(resolve(options, student, teacher), student, teacher)


@cache
def shared_out() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(method, head) pairs that are served, the heads taking turns, and those that are not."""
    infos = {head: tiny(head).info for head in DETECTORS}
    share, refused = [], []
    for number, method in enumerate(METHODS):
        heads = [head for head, info in infos.items() if serves(method, info)]
        turns = [head for head in heads if head not in SETS] or [
            head for head in heads if head in ("deformable_detr", "d_fine")
        ]
        share.append((method, PINNED.get(method, turns[number % len(turns)])))
        refused += [(method, head) for head in DETECTORS if head not in heads]
    return share, refused


def serves(method: str, info: DetectorInfo) -> bool:
    try:
        built({method: {}}, info, info)
    except UserError as error:
        return not re.fullmatch(rf"method {method}: .+; .+", str(error))  # what is lacking, and a remedy
    return True


@pytest.mark.parametrize(("method", "head"), shared_out()[0])
def test_every_method_teaches_a_detector_of_its_own_kind(method: str, head: str):
    student, teacher = begun(head, seed=0), begun(head)
    moved = check_pair(
        student,
        teacher,
        built({method: {"warmup_steps": 0, **LOUD.get(method, {})}}, student.info, teacher.info),
        EXAMPLE,
        steps=STEPS,
    )
    assert moved["total"][0] > moved[method][0] > 0


def test_what_reads_a_dense_head_refuses_the_others_and_what_reads_rois_refuses_dense_heads():
    refused = set(shared_out()[1])
    for method in ("crosskd", "mimicking", "ld", "bckd"):
        assert {(method, head) for head in WITHOUT_CELLS} <= refused
    for method in ("kd", "dkd", "proposal_kd", "crosskd_roi", "chen2017"):
        assert {(method, head) for head in (*DENSE, *SETS)} <= refused
    for method in ("detrdistill", "kddetr", "go_lsd"):
        assert {(method, head) for head in (*DENSE, "faster_rcnn", "mask_rcnn")} <= refused
    assert not {method for method, _ in refused} & {
        "pkd",
        "fitnets",
        "at",
        "reviewkd",
        "cwd",
        "mgd",
        "fgd",
        "fgfi",
        "defeat",
    }


@pytest.mark.parametrize(("head", "teacher_head"), [("fcos", "gfl"), ("retinanet", "atss"), ("atss", "fcos")])
def test_other_families_teach_by_features_and_by_their_own_head_together(head: str, teacher_head: str):
    student, teacher = tiny(head, channels=48), begun(teacher_head)  # other widths: connectors
    methods = built({"pkd": {}, "crosskd": {}}, student.info, teacher.info)
    check_pair(student, teacher, methods, EXAMPLE, steps=STEPS)


@pytest.mark.parametrize(
    ("head", "teacher_head"),
    [
        ("deformable_detr", "gfl"),
        ("gfl", "rt_detr"),
        ("detr", "fcos"),
        ("adamixer", "faster_rcnn"),
        ("mask_rcnn", "d_fine"),
    ],
)
def test_set_predictors_and_the_others_teach_each_other_by_features(head: str, teacher_head: str):
    student, teacher = tiny(head, channels=64), begun(teacher_head)  # other widths: connectors
    methods = built({"pkd": {"least_positions": 4}, "mgd": {}, "token_alignment": {}}, student.info, teacher.info)
    check_pair(student, teacher, methods[1:], EXAMPLE, steps=STEPS)
    check_pair(student, teacher, methods[:1], EXAMPLE, steps=STEPS)


def test_queries_of_other_families_teach_where_their_parts_fit():
    student, teacher = tiny("conditional_detr"), begun("deformable_detr")
    check_pair(student, teacher, built({"detrdistill": {}}, student.info, teacher.info), EXAMPLE, steps=STEPS)
    with pytest.raises(
        UserError, match="reads the content of queries, which the teacher's conditional_detr hasn't got"
    ):
        built({"detrdistill": {}}, teacher.info, student.info)


def test_a_method_that_can_not_fall_is_told():
    student, teacher = tiny("gfl"), begun("gfl")
    with pytest.raises(AssertionError, match="total did not fall in 0 steps"):
        check_pair(student, teacher, built({"pkd": {}}, student.info, teacher.info), EXAMPLE, steps=0)
    broken = copy.deepcopy(student)
    next(iter(broken.parameters())).data.fill_(float("nan"))
    with pytest.raises(AssertionError, match="not finite after 0 steps"):
        check_pair(broken, teacher, built({"pkd": {}}, student.info, teacher.info), EXAMPLE, steps=1)


def test_the_bench_writes_its_table_and_fails_with_a_failing_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bench = runpy.run_path(str(Path(__file__).parents[2] / "bench" / "conformance.py"))
    files = [tmp_path / "cells.json", tmp_path / "cells.md"]
    argv = [
        "conformance.py",
        "--detector",
        "faster_rcnn",
        "--method",
        "crosskd",
        "--json",
        str(files[0]),
        "--markdown",
        str(files[1]),
    ]
    monkeypatch.setattr("sys.argv", argv)
    monkeypatch.setitem(bench["main"].__globals__, "begun", lambda head, *_: begun(head.partition(":")[0]))
    assert bench["main"]() == 0
    assert "| faster_rcnn | faster_rcnn | no [1] |" in files[1].read_text()
    monkeypatch.setitem(bench["main"].__globals__, "check_pair", lambda *_, **__: 1 / 0)
    monkeypatch.setattr("sys.argv", ["conformance.py", "--detector", "gfl", "--method", "pkd", "--json", str(files[0])])
    assert bench["main"]() == 1
    assert "ZeroDivisionError" in files[0].read_text()
