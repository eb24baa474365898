"""The methods that serve a pair, and the nearest change for the others."""

import pytest

from detdistill.detectors.build import with_defaults
from detdistill.recipe import ModelConfig
from detdistill.run.models import build
from detdistill.run.nearest import Served, find_served
from detdistill.types import DetectorInfo

CLASSES = ("a", "b")


def config(head: str, **fields: object) -> ModelConfig:
    values = {"name": f"{head}:mobilenetv2_035", "channels": 32, "tower_depth": 2, "backbone_weights": "none"}
    return with_defaults(ModelConfig.model_validate({**values, "strides": (8, 16, 32), **fields}))


def info(head: str, **fields: object) -> DetectorInfo:
    model = config(head, **fields)
    return build(model.name, CLASSES, **model.model_dump(exclude={"name"})).info


def served(student: ModelConfig, teacher: DetectorInfo, *methods: str) -> dict[str, Served]:
    made = build(student.name, CLASSES, **student.model_dump(exclude={"name"})).info
    return find_served({name: {} for name in methods}, made, teacher, student)


def test_a_method_that_serves_is_built() -> None:
    found = served(config("gfl"), info("gfl"), "pkd", "crosskd")
    assert [(entry.method.name, entry.reason) for entry in found.values()] == [("pkd", ""), ("crosskd", "")]


def test_a_refusal_has_the_reason_the_nearest_change_and_methods_of_the_group() -> None:
    found = served(config("atss"), info("gfl"), "ld", "mimicking", "kd")
    assert found["ld"].method is None and "distributions" in found["ld"].reason
    assert found["ld"].nearest == "a student with --model.edges true"
    assert {"mimicking", "crosskd"} <= set(found["ld"].instead)
    assert found["kd"].nearest == "student and teacher both with the head faster_rcnn"


@pytest.mark.parametrize(
    ("student", "teacher", "method", "nearest"),
    [
        ("gfl", ("gfl", {"strides": (8, 16)}), "crosskd", "a student with --model.strides 8,16"),
        ("gfl", ("faster_rcnn", {}), "kd", "a student with the head faster_rcnn"),
        ("gfl", ("faster_rcnn", {}), "crosskd", "a teacher with the head gfl"),
        ("rt_detr", ("rt_detr", {}), "detrdistill", "--methods.detrdistill.weight-assignment 0"),
    ],
)
def test_the_nearest_change_is_the_smallest_that_serves(
    student: str, teacher: tuple[str, dict], method: str, nearest: str
) -> None:
    extra = {"queries": 12, "decoder_layers": 1, "encoder_layers": 1} if student == "rt_detr" else {}
    found = served(config(student, **extra), info(teacher[0], **extra, **teacher[1]), method)
    assert found[method].nearest.startswith(nearest), found[method]


def test_a_pair_without_a_shared_class_needs_another_teacher() -> None:
    student = config("gfl")
    made = build(student.name, CLASSES, **student.model_dump(exclude={"name"})).info
    other = build(student.name, ("c",), **student.model_dump(exclude={"name"})).info
    found = find_served({"pkd": {}, "crosskd": {}}, made, other, student)
    assert found["pkd"].method is not None
    assert found["crosskd"].nearest == "a teacher like this one that knows the student's classes"


def test_without_a_known_student_only_options_and_the_teacher_are_tried() -> None:
    found = find_served({"kd": {}}, info("gfl"), info("gfl"), None)
    assert found["kd"].nearest == "student and teacher both with the head faster_rcnn"
