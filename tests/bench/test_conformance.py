"""A quick part of `bench/conformance.py`: each method on one detector that it serves, and all refusals."""

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

TWO_STAGE = ("faster_rcnn", "mask_rcnn")
EXAMPLE = scene(len(CLASSES), (64, 96))
STEPS = 3
FIXED_HEADS = {"mimicking": "gfl"}  # with a RetinaNet, the terms need more than three steps to fall
LARGE_WEIGHTS = {  # with the default weights, the gradients of the labels are larger, and the terms do not fall
    "clockdistill": {"weight_foreground": 0.1},
    "go_lsd": {"weight": 300.0},
}


@cache
def trained(head: str, seed: int = 1) -> Detector:
    """A detector after a short training on the labels of the batch, except heads with queries other than D-FINE.

    The predictions of a teacher are then useful, and the task losses of a student fall from here on.
    """
    detector = tiny(head, seed=seed)
    learn(detector, None, [], EXAMPLE, steps=0 if head in SETS and head != "d_fine" else 15, lr=1e-3)
    return detector


def build(options: dict, student: DetectorInfo, teacher: DetectorInfo) -> list:
    """The methods with these options, the rest from their presets."""
    return build_methods(resolve(options, student, teacher), student, teacher)


@cache
def pairs() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Two lists of (method, head): one pair to train for each method, and all pairs that are refused.

    The methods are trained on different heads in turn, so that every head is used.
    """
    infos = {head: tiny(head).info for head in DETECTORS}
    trained_pairs, refused_pairs = [], []
    for number, method in enumerate(METHODS):
        heads = [head for head, info in infos.items() if is_served(method, info)]
        candidates = [head for head in heads if head not in SETS]
        if not candidates:
            candidates = [head for head in heads if head in ("deformable_detr", "d_fine")]
        trained_pairs.append((method, FIXED_HEADS.get(method, candidates[number % len(candidates)])))
        refused_pairs += [(method, head) for head in DETECTORS if head not in heads]
    return trained_pairs, refused_pairs


def is_served(method: str, info: DetectorInfo) -> bool:
    """False if the method refuses the pair with a message that names a problem and a remedy.

    Any other message also returns True, so that the test of this pair then fails.
    """
    try:
        build({method: {}}, info, info)
    except UserError as error:
        return not re.fullmatch(rf"method {method}: .+; .+", str(error))
    return True


@pytest.mark.parametrize(("method", "head"), pairs()[0])
def test_every_method_trains_with_a_teacher_of_the_same_head(method: str, head: str):
    student, teacher = trained(head, seed=0), trained(head)
    options = {method: {"warmup_steps": 0, **LARGE_WEIGHTS.get(method, {})}}
    steps = 2 * STEPS if head in SETS else STEPS
    sums = check_pair(student, teacher, build(options, student.info, teacher.info), EXAMPLE, steps=steps)
    assert sums["total"][0] > sums[method][0] > 0


def test_methods_refuse_heads_without_the_parts_that_they_read():
    refused = set(pairs()[1])
    for method in ("crosskd", "mimicking", "ld", "bckd"):  # read a dense head
        assert {(method, head) for head in (*TWO_STAGE, *SETS)} <= refused
    for method in ("kd", "dkd", "proposal_kd", "crosskd_roi", "chen2017"):  # read an RoI head
        assert {(method, head) for head in (*DENSE, *SETS)} <= refused
    for method in ("detrdistill", "kddetr", "go_lsd"):  # read queries
        assert {(method, head) for head in (*DENSE, *TWO_STAGE)} <= refused
    serve_all = {"pkd", "fitnets", "at", "reviewkd", "cwd", "mgd", "fgd", "fgfi", "defeat"}
    assert not {method for method, _ in refused} & serve_all


@pytest.mark.parametrize(("head", "teacher_head"), [("fcos", "gfl"), ("retinanet", "atss"), ("atss", "fcos")])
def test_a_teacher_with_another_dense_head_trains_features_and_predictions(head: str, teacher_head: str):
    student = tiny(head, channels=48)  # the widths differ, so that the methods need connectors
    teacher = trained(teacher_head)
    methods = build({"pkd": {}, "crosskd": {}}, student.info, teacher.info)
    check_pair(student, teacher, methods, EXAMPLE, steps=STEPS)


@pytest.mark.parametrize("head", DENSE)
def test_separable_students_and_teachers_train_with_plain_ones(head: str):
    plain, separable = trained(head), tiny(head, depthwise=True, neck="pafpn")
    learn(separable, None, [], EXAMPLE, steps=15, lr=1e-3)
    for student, teacher in ((separable, plain), (plain, separable)):
        # With the published weights, the gradients of the labels of a RetinaNet are much larger than those of CrossKD.
        weights = {"weight_class": 50.0, "weight_box": 50.0} if head == "retinanet" else {}
        for method in build({"pkd": {}, "crosskd": weights}, student.info, teacher.info):
            check_pair(student, teacher, [method], EXAMPLE, steps=2 * STEPS)


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
def test_features_train_between_heads_with_queries_and_other_heads(head: str, teacher_head: str):
    student = tiny(head, channels=64)  # the widths differ, so that the methods need connectors
    teacher = trained(teacher_head)
    methods = build({"pkd": {"least_positions": 4}, "mgd": {}, "token_alignment": {}}, student.info, teacher.info)
    check_pair(student, teacher, methods[1:], EXAMPLE, steps=STEPS)
    check_pair(student, teacher, methods[:1], EXAMPLE, steps=STEPS)


def test_queries_of_another_head_train_only_if_the_student_has_their_parts():
    student, teacher = tiny("conditional_detr"), trained("deformable_detr")
    check_pair(student, teacher, build({"detrdistill": {}}, student.info, teacher.info), EXAMPLE, steps=STEPS)
    message = r"reads the content of queries, which the teacher's queries \(conditional_detr\) do not have"
    with pytest.raises(UserError, match=message):
        build({"detrdistill": {}}, teacher.info, student.info)


def test_check_pair_raises_if_the_terms_do_not_fall_or_are_not_finite():
    student, teacher = tiny("gfl"), trained("gfl")
    with pytest.raises(AssertionError, match="the sum of the terms of pkd did not fall in 0 steps"):
        check_pair(student, teacher, build({"pkd": {}}, student.info, teacher.info), EXAMPLE, steps=0)
    broken = copy.deepcopy(student)
    next(iter(broken.parameters())).data.fill_(float("nan"))
    with pytest.raises(AssertionError, match="not finite after 0 steps"):
        check_pair(broken, teacher, build({"pkd": {}}, student.info, teacher.info), EXAMPLE, steps=1)


def test_the_bench_writes_its_table_and_a_failed_cell_sets_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bench = runpy.run_path(str(Path(__file__).parents[2] / "bench" / "conformance.py"))
    files = [tmp_path / "cells.json", tmp_path / "cells.md"]
    argv = ["conformance.py", "--detector", "faster_rcnn", "--method", "crosskd"]
    argv += ["--json", str(files[0]), "--markdown", str(files[1])]
    monkeypatch.setattr("sys.argv", argv)
    monkeypatch.setitem(bench["main"].__globals__, "trained", lambda name, *_: trained(name.partition(":")[0]))
    assert bench["main"]() == 0
    assert "| faster_rcnn | faster_rcnn | no [1] |" in files[1].read_text()
    monkeypatch.setitem(bench["main"].__globals__, "check_pair", lambda *_, **__: 1 / 0)
    monkeypatch.setattr("sys.argv", ["conformance.py", "--detector", "gfl", "--method", "pkd", "--json", str(files[0])])
    assert bench["main"]() == 1
    assert "ZeroDivisionError" in files[0].read_text()
