"""PKT on instances: its weight, its normalizer, and its inputs."""

import pytest
import torch

from detdistill.losses import pkt
from detdistill.methods.pkt import PKT, PKTConfig
from detdistill.types import Targets
from tests.methods.instances import info, maps, neck_output, padded, select_images, targets
from tests.methods.pairs import built, method_inputs, pair


def built_on(student_width: int, teacher_width: int, **options: object) -> PKT:
    """Returns the method for one-stage detectors of these widths."""
    return PKT.build(PKTConfig(**options), info(student_width), info(teacher_width))


def test_the_weight_is_for_64_instances_whatever_the_number_of_boxes():
    method, unscaled = built_on(4, 6), built_on(4, 6, batch=None)
    student, teacher, boxes = neck_output(4, 0), neck_output(6, 1), targets([0, 1, 0], [1, 1])
    instances = method.embeddings(student, teacher, boxes)
    distance = pkt(instances.student, instances.teacher)
    torch.testing.assert_close(unscaled(student, teacher, boxes)["relations"], 30000 * distance)
    torch.testing.assert_close(method(student, teacher, boxes)["relations"], 30000 * distance * 5 / 64)
    # Every box twice: the mean over rows stays, the published mean over pairs is halved.
    repeated = Targets(tuple(b.repeat(2, 1) for b in boxes.boxes), tuple(b.repeat(2) for b in boxes.labels))
    with torch.no_grad():
        ratios = [
            float(kind(student, teacher, repeated)["relations"] / kind(student, teacher, boxes)["relations"])
            for kind in (method, unscaled)
        ]
    assert ratios == pytest.approx([1.0, 0.5], rel=1e-3)


def test_zero_for_equal_maps_and_no_gradient_to_the_teacher():
    method = built_on(6, 6)
    student, teacher, boxes = neck_output(6, 0), neck_output(6, 1), targets([0, 1], [1, 1])
    assert abs(method(teacher, teacher, boxes)["relations"]) < 1e-2 < 1 < method(student, teacher, boxes)["relations"]
    method(student, teacher, boxes)["relations"].backward()
    assert maps(student)[0].grad.abs().sum() > 0
    assert all(level.grad is None for level in maps(teacher))


@pytest.mark.parametrize("labels", [([], []), ([0], [])])
def test_fewer_than_two_boxes_give_zero_and_a_zero_gradient(labels: tuple[list[int], ...]):
    student = neck_output(4, 0)
    term = built_on(4, 6)(student, neck_output(6, 1), targets(*labels))["relations"]
    assert term.item() == 0
    term.backward()
    assert not maps(student)[0].grad.any()


def test_the_diagonal_can_be_left_out():
    student, teacher, boxes = neck_output(4, 0), neck_output(6, 1), targets([0, 1, 0], [1, 1])
    method = built_on(4, 6, diagonal=False, batch=None, weight=2.0)
    instances = method.embeddings(student, teacher, boxes)
    expected = 2 * pkt(instances.student, instances.teacher, diagonal=False)
    torch.testing.assert_close(method(student, teacher, boxes)["relations"], expected)


def test_instances_of_different_images_are_related():
    method, boxes = built_on(4, 6, batch=None), targets([0], [1])
    student, teacher = neck_output(4, 0), neck_output(6, 1)
    assert method(student, teacher, boxes)["relations"] > 0
    first = slice(1)
    first_boxes = Targets(boxes.boxes[first], boxes.labels[first])
    terms = method(select_images(student, first), select_images(teacher, first), first_boxes)
    assert terms["relations"] == 0


def test_padding_the_batch_further_changes_nothing():
    method, boxes = built_on(4, 6), targets([0, 1], [1, 1])
    student, teacher = neck_output(4, 0), neck_output(6, 1)
    torch.testing.assert_close(method(padded(student), padded(teacher), boxes), method(student, teacher, boxes))


def test_a_two_stage_pair_relates_roi_embeddings_and_trains_the_box_head():
    student, teacher = pair("faster_rcnn")
    method = built("pkt", student, teacher)
    term = method(*method_inputs(method, student, teacher))["relations"]
    term.backward()
    assert term > 0
    assert student.model.roi_heads.box_head.fc7.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
