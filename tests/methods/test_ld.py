"""LD: its terms from the formula, regions, rows that count, presets, refusals."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from detdistill.errors import UserError
from detdistill.geometry import valuable_region
from detdistill.losses import edge_kl, softmax_kl
from detdistill.methods import Method
from detdistill.methods.ld import LD, LDConfig
from detdistill.methods.presets import preset
from detdistill.types import Batch, Detector, DetectorOutput, EdgeInfo, Targets
from tests.detectors.builders import DENSE, scene, shake, tiny
from tests.methods.pairs import built, method_inputs

TERMS = {"edges", "valuable_edges", "class", "valuable_class"}


def with_edges(head: str, seed: int) -> Detector:
    """Returns a dense detector with side distributions of 5 bins."""
    return shake(tiny(head, seed, edges=head != "gfl", edge_bins=5)).eval()


def method_and_arguments(
    head: str, scenery: tuple[Batch, Targets] | None = None, **options: Any
) -> tuple[Method, tuple[DetectorOutput, DetectorOutput, Targets]]:
    """Returns LD for a pair of this head, and the arguments to call it with."""
    student, teacher = with_edges(head, 1), with_edges(head, 2)
    method = built("ld", student, teacher, **options)
    return method, method_inputs(method, student, teacher, scenery)


@pytest.mark.parametrize("head", DENSE)
def test_terms_are_the_published_sums(head: str):
    method, (student_output, teacher_output, targets) = method_and_arguments(head)
    config = method.config
    student_predictions, teacher_predictions = student_output.stages[-1], teacher_output.stages[-1]
    terms = method(student_output, teacher_output, targets)
    score = student_predictions.logits.sigmoid().amax(-1)
    positive = student_predictions.assignment.positive
    joint = head == "retinanet"
    student_edges, teacher_edges = student_predictions.edges, teacher_predictions.edges
    shape = (*student_edges.shape[:2], 1, 20) if joint else student_edges.shape
    sides = edge_kl(student_edges.reshape(shape), teacher_edges.reshape(shape), 10.0).sum(-1) / shape[-1] / 4
    torch.testing.assert_close(terms["edges"], config.weight_edges * (score * sides)[positive].sum())
    assert config.weight_edges == (5.0 if joint else 0.25)
    temperature = 8.0 if joint else 2.0
    classes = softmax_kl(student_predictions.logits, teacher_predictions.logits, temperature).mul(positive) / 3
    layout = student_predictions.layout
    expected = 0
    for level, level_positive in zip(layout.split(classes), layout.split(positive), strict=True):
        expected += 10 * level.sum() / max(1, int(level_positive.sum()))
    torch.testing.assert_close(terms["class"], expected)
    levels = [level.reshape(-1, 4) for level in student_output.pyramids["neck"].anchors]
    region = "inside" if head == "fcos" else "iof_compat"
    ring = torch.zeros(positive.shape)
    for image, valid in enumerate(student_predictions.valid):
        anchors = [level[mask] for level, mask in zip(levels, valid.split(layout.counts), strict=True)]
        ring[image, valid] = valuable_region(anchors, targets.boxes[image], region=region)
    assert (ring > 0).any()
    if head in ("fcos", "retinanet"):
        ring = ring * ~positive
    weights = score * ring if head == "fcos" else ring
    weight = {"gfl": 0.0625, "fcos": 0.0625, "atss": 0.15 * 0.25, "retinanet": 0.03 * 5}[head]
    torch.testing.assert_close(terms["valuable_edges"], weight * (weights * sides).sum())
    assert "valuable_class" not in terms


def test_the_coefficients_are_as_published():
    # 17 bins, T = 10: 0.25 * 100 / 17 / 4 = 0.368 times the KL of a side summed over bins, and a quarter of that in the
    # ring; 10 * 4 / 80 = 0.5 times the KL of classes.
    config = LDConfig()
    assert config.weight_edges * config.temperature**2 / 17 / 4 == pytest.approx(0.368, abs=5e-4)
    assert config.weight_valuable * config.temperature**2 / 17 / 4 == pytest.approx(0.0919, abs=5e-5)
    assert config.weight_class * config.class_temperature**2 / 80 == 0.5


@pytest.mark.parametrize("head", ["gfl", "retinanet"])
def test_terms_are_zero_if_the_student_is_the_teacher_and_the_teacher_gets_no_gradient(head: str):
    student, teacher = with_edges(head, 1), with_edges(head, 2)
    method = built("ld", student, teacher, weight_valuable_class=1.0)
    terms = method(*method_inputs(method, teacher, teacher))
    assert terms.keys() == TERMS
    assert all(term.abs() < 1e-4 for term in terms.values())
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    teacher_predictions = teacher_output.stages[-1]
    teacher_predictions.logits.requires_grad_()
    teacher_predictions.edges.requires_grad_()
    sum(method(student_output, teacher_output, targets).values()).backward()
    assert teacher_predictions.logits.grad is None
    assert teacher_predictions.edges.grad is None
    assert all(p.grad is None for p in teacher.parameters())


def test_edge_terms_grow_with_the_batch_and_the_class_term_does_not():
    batch, targets = scene()
    tensors = {name: torch.cat([getattr(batch, name)] * 2) for name in ("images", "sizes", "originals", "ids")}
    doubled_scene = replace(batch, **tensors, names=batch.names * 2), Targets(targets.boxes * 2, targets.labels * 2)
    for normalizer in ("none", "trust"):
        method, arguments = method_and_arguments("gfl", normalizer=normalizer)
        _, doubled_arguments = method_and_arguments("gfl", doubled_scene, normalizer=normalizer)
        single, doubled = method(*arguments), method(*doubled_arguments)
        torch.testing.assert_close(doubled["class"], single["class"])
        if normalizer == "none":
            torch.testing.assert_close(doubled["edges"], 2 * single["edges"])
            torch.testing.assert_close(doubled["valuable_edges"], 2 * single["valuable_edges"])


def test_trust_divides_by_the_sum_of_weights():
    plain, arguments = method_and_arguments("gfl", weight_valuable=0.0)
    divided, _ = method_and_arguments("gfl", weight_valuable=0.0, normalizer="trust")
    student_predictions = arguments[0].stages[-1]
    weights = (student_predictions.logits.sigmoid().amax(-1) * student_predictions.assignment.positive).sum()
    assert weights > 1
    torch.testing.assert_close(divided(*arguments)["edges"] * weights, plain(*arguments)["edges"])


def test_the_ring_does_not_change_if_the_batch_is_padded_further():
    rings = []
    for size in ((64, 96), (128, 160)):
        method, (student_output, _, targets) = method_and_arguments("gfl", scene(*size), region="diou")
        predictions = student_output.stages[-1]
        ring = method._valuable(student_output.pyramids["neck"], predictions, targets)
        levels = zip(predictions.layout.split(ring), (8, 16, 32), strict=True)
        rings.append([level[:, : 64 // stride, : 96 // stride] for level, stride in levels])
        assert sum(level.sum() for level in rings[-1]) == pytest.approx(ring.sum().item())
    small, large = rings
    assert all(torch.equal(level, padded) for level, padded in zip(small, large, strict=True))
    assert any(bool(level.any()) for level in small)


def test_options_of_the_ring():
    values = {}
    for options in (
        {"valuable": "overlap"},
        {"valuable": "mask"},
        {"valuable": "score"},
        {"region": "diou"},
        {"gamma": 0.9},
    ):
        method, arguments = method_and_arguments("gfl", **options)
        values[str(options)] = method(*arguments)["valuable_edges"].item()
    assert len(set(values.values())) == len(values)
    assert values["{'valuable': 'mask'}"] > values["{'valuable': 'overlap'}"]
    assert values["{'gamma': 0.9}"] < values["{'valuable': 'overlap'}"]


@pytest.mark.parametrize("head", DENSE)
def test_a_batch_without_objects_is_zero_with_a_gradient(head: str):
    method, arguments = method_and_arguments(head, scene(objects=False), weight_valuable_class=1.0)
    terms = method(*arguments)
    sum(terms.values()).backward()
    assert terms.keys() == TERMS
    assert all(term == 0 for term in terms.values())


def test_positives_of_a_class_that_the_teacher_lacks_are_left_out_of_the_class_term():
    _, (student_output, teacher_output, targets) = method_and_arguments("gfl")
    student = tiny("gfl").info
    teacher = replace(student, classes=("disc", "ring", "cross"))  # without the second class of the student
    method = LD.build(LDConfig(), student, teacher)
    only_squares = Targets(targets.boxes, tuple(torch.ones_like(labels) for labels in targets.labels))
    terms = method(student_output, teacher_output, only_squares)
    assert terms["class"] == 0
    assert terms["edges"] > 0


def test_unsupported_pairs_are_refused_at_build():
    gfl, faster = tiny("gfl").info, tiny("faster_rcnn").info
    without_edges = tiny("atss", edges=False, edge_bins=17).info
    fcos = replace(tiny("fcos").info, edges=EdgeInfo(17))
    no_edges = r"the student \(atss\) has no distance distributions; use gfl, or .* --model.edges"
    for student, teacher, config, message in (
        (without_edges, gfl, LDConfig(), no_edges),
        (gfl, replace(gfl, edges=EdgeInfo(9)), LDConfig(), "have 17 and 9 bins"),
        (gfl, fcos, LDConfig(), "gfl and fcos measure distances from different points"),
        (faster, gfl, LDConfig(), "no dense head"),
        (gfl, replace(gfl, strides=(8, 16)), LDConfig(), "predictions are compared cell by cell"),
        (gfl, replace(gfl, classes=("a", "b", "c")), LDConfig(), "no class in common"),
        (gfl, gfl, LDConfig(0, 0, 0, 0), "all its weights are 0"),
    ):
        with pytest.raises(UserError, match=message):
            LD.build(config, student, teacher)


def test_the_students_head_selects_the_preset():
    atss, gfl = tiny("atss").info, tiny("gfl").info
    assert preset("ld", atss, gfl) == {"weight_valuable": 0.0375}
    assert preset("ld", gfl, atss) == {}
