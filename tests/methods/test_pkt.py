"""PKT on instances: its weight, its normaliser, what it reads."""

import pytest
import torch

from detdistill.losses import pkt
from detdistill.methods.pkt import PKT, PKTConfig
from detdistill.types import Targets
from tests.methods.instances import info, look, maps, padded, part, targets
from tests.methods.pairs import built, looks, pair


def built_on(*widths: int, **options: object) -> PKT:
    student, teacher = (info(width) for width in widths)
    return PKT.build(PKTConfig(**options), student, teacher)


def test_the_weight_is_that_of_a_batch_of_64_whatever_the_number_of_boxes():
    method, plain = built_on(4, 6), built_on(4, 6, batch=None)
    student, teacher, given = look(4, 0), look(6, 1), targets([0, 1, 0], [1, 1])
    found = method.embeddings(student, teacher, given)
    distance = pkt(found.student, found.teacher)
    torch.testing.assert_close(plain(student, teacher, given)["relations"], 30000 * distance)
    torch.testing.assert_close(method(student, teacher, given)["relations"], 30000 * distance * 5 / 64)
    # Every box twice: the mean row stays, the published mean over pairs halves.
    twice = Targets(tuple(own.repeat(2, 1) for own in given.boxes), tuple(own.repeat(2) for own in given.labels))
    with torch.no_grad():
        ratios = [
            float(kind(student, teacher, twice)["relations"] / kind(student, teacher, given)["relations"])
            for kind in (method, plain)
        ]
    assert ratios == pytest.approx([1.0, 0.5], rel=1e-3)


def test_zero_for_itself_and_no_gradient_to_the_teacher():
    method = built_on(6, 6)
    student, teacher, given = look(6, 0), look(6, 1), targets([0, 1], [1, 1])
    assert abs(method(teacher, teacher, given)["relations"]) < 1e-2 < 1 < method(student, teacher, given)["relations"]
    method(student, teacher, given)["relations"].backward()
    assert maps(student)[0].grad.abs().sum() > 0
    assert all(level.grad is None for level in maps(teacher))


@pytest.mark.parametrize("labels", [([], []), ([0], [])])
def test_fewer_than_two_boxes_give_zero_with_a_graph(labels: tuple[list[int], ...]):
    student = look(4, 0)
    term = built_on(4, 6)(student, look(6, 1), targets(*labels))["relations"]
    assert term.item() == 0
    term.backward()
    assert not maps(student)[0].grad.any()


def test_the_diagonal_is_an_option():
    student, teacher, given = look(4, 0), look(6, 1), targets([0, 1, 0], [1, 1])
    method = built_on(4, 6, diagonal=False, batch=None, weight=2.0)
    found = method.embeddings(student, teacher, given)
    torch.testing.assert_close(
        method(student, teacher, given)["relations"], 2 * pkt(found.student, found.teacher, diagonal=False)
    )


def test_instances_of_all_images_are_related():
    method, given = built_on(4, 6, batch=None), targets([0], [1])
    student, teacher = look(4, 0), look(6, 1)
    assert method(student, teacher, given)["relations"] > 0
    alone = method(part(student, slice(1)), part(teacher, slice(1)), Targets(given.boxes[:1], given.labels[:1]))
    assert alone["relations"] == 0


def test_padding_the_batch_further_changes_nothing():
    method, given = built_on(4, 6), targets([0, 1], [1, 1])
    outputs = look(4, 0), look(6, 1)
    wider = tuple(padded(output) for output in outputs)
    torch.testing.assert_close(method(*wider, given), method(*outputs, given))


def test_a_two_stage_pair_relates_roi_embeddings_and_teaches_the_box_head():
    student, teacher = pair("faster_rcnn")
    method = built("pkt", student, teacher)
    term = method(*looks(method, student, teacher))["relations"]
    term.backward()
    assert term > 0
    assert student.model.roi_heads.box_head.fc7.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
