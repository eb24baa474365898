"""LD: its terms from the formula, regions, rows that count, presets, refusals."""

from dataclasses import replace

import pytest
import torch

from detdistill.errors import UserError
from detdistill.geometry import valuable_region
from detdistill.losses import edge_kl, softmax_kl
from detdistill.methods.ld import LD, LDConfig
from detdistill.methods.presets import preset
from detdistill.types import Detector, EdgeInfo, Targets
from tests.detectors.builders import DENSE, scene, shake, tiny
from tests.methods.pairs import built, looks

TERMS = {"edges", "valuable_edges", "class", "valuable_class"}


def edged(head: str, seed: int) -> Detector:
    return shake(tiny(head, seed, edges=head != "gfl", edge_bins=5)).eval()


def lesson(head: str, scenery: tuple | None = None, **options):
    """The method, and what it is called with."""
    student, teacher = edged(head, 1), edged(head, 2)
    method = built("ld", student, teacher, **options)
    return method, looks(method, student, teacher, scenery)


@pytest.mark.parametrize("head", DENSE)
def test_terms_are_the_published_sums(head: str):
    method, (mine, theirs, targets) = lesson(head)
    config, guess, taught = method.config, mine.stages[-1], theirs.stages[-1]
    terms = method(mine, theirs, targets)
    score, positive = guess.logits.sigmoid().amax(-1), guess.assignment.positive
    joint = head == "retinanet"
    shape = (*guess.edges.shape[:2], 1, 20) if joint else guess.edges.shape
    sides = edge_kl(guess.edges.reshape(shape), taught.edges.reshape(shape), 10.0).sum(-1) / shape[-1] / 4
    torch.testing.assert_close(terms["edges"], config.weight_edges * (score * sides)[positive].sum())
    assert config.weight_edges == (5.0 if joint else 0.25)
    classes, expected = softmax_kl(guess.logits, taught.logits, 8.0 if joint else 2.0).mul(positive) / 3, 0
    for level, rows in zip(guess.layout.split(classes), guess.layout.split(positive), strict=True):
        expected += 10 * level.sum() / max(1, int(rows.sum()))
    torch.testing.assert_close(terms["class"], expected)
    anchors = [level.reshape(-1, 4) for level in mine.pyramids["neck"].anchors]
    counts = guess.layout.counts
    ring = torch.zeros(positive.shape)
    for image, inside in enumerate(guess.valid):
        kept = [level[mask] for level, mask in zip(anchors, inside.split(counts), strict=True)]
        ring[image, inside] = valuable_region(
            kept, targets.boxes[image], region="inside" if head == "fcos" else "iof_compat"
        )
    assert (ring > 0).any()
    if head in ("fcos", "retinanet"):
        ring = ring * ~positive
    weights = score * ring if head == "fcos" else ring
    weight = {"gfl": 0.0625, "fcos": 0.0625, "atss": 0.15 * 0.25, "retinanet": 0.03 * 5}[head]
    torch.testing.assert_close(terms["valuable_edges"], weight * (weights * sides).sum())
    assert "valuable_class" not in terms


def test_the_whole_coefficient_of_a_side_is_as_published():
    # 17 bins, T 10: 0.25 * 100 / 17 / 4 = 0.368 of a side's KL summed over bins, and a quarter of it in the ring; 10 * 4 / 80 = 0.5 of a class KL.
    config = LDConfig()
    assert config.weight_edges * config.temperature**2 / 17 / 4 == pytest.approx(0.368, abs=5e-4)
    assert config.weight_valuable * config.temperature**2 / 17 / 4 == pytest.approx(0.0919, abs=5e-5)
    assert config.weight_class * config.class_temperature**2 / 80 == 0.5


@pytest.mark.parametrize("head", ["gfl", "retinanet"])
def test_teacher_as_student_gives_zero_and_the_teacher_gets_no_gradient(head: str):
    student, teacher = edged(head, 1), edged(head, 2)
    method = built("ld", student, teacher, weight_valuable_class=1.0)
    mine, theirs, targets = looks(method, teacher, teacher)
    terms = method(mine, theirs, targets)
    assert terms.keys() == TERMS
    assert all(term.abs() < 1e-4 for term in terms.values())
    mine, theirs, targets = looks(method, student, teacher)
    known = replace(
        theirs.stages[-1],
        logits=theirs.stages[-1].logits.requires_grad_(),
        edges=theirs.stages[-1].edges.requires_grad_(),
    )
    sum(method(mine, replace(theirs, stages=(known,)), targets).values()).backward()
    assert known.logits.grad is None
    assert known.edges.grad is None
    assert all(p.grad is None for p in teacher.parameters())


def test_edge_terms_grow_with_the_batch_and_the_class_term_does_not():
    batch, targets = scene()
    fields = {name: torch.cat([getattr(batch, name)] * 2) for name in ("images", "sizes", "originals", "ids")}
    twice = replace(batch, **fields, names=batch.names * 2), Targets(targets.boxes * 2, targets.labels * 2)
    for normalizer, factor in (("none", 2.0), ("trust", 1.0)):
        method, outputs = lesson("gfl", normalizer=normalizer)
        _, doubled = lesson("gfl", twice, normalizer=normalizer)
        once, both = method(*outputs), method(*doubled)
        torch.testing.assert_close(both["class"], once["class"])
        if normalizer == "none":
            torch.testing.assert_close(both["edges"], factor * once["edges"])
            torch.testing.assert_close(both["valuable_edges"], factor * once["valuable_edges"])


def test_trust_divides_by_the_sum_of_weights():
    plain, outputs = lesson("gfl", weight_valuable=0.0)
    divided, _ = lesson("gfl", weight_valuable=0.0, normalizer="trust")
    stage = outputs[0].stages[-1]
    weights = (stage.logits.sigmoid().amax(-1) * stage.assignment.positive).sum()
    assert weights > 1
    torch.testing.assert_close(divided(*outputs)["edges"] * weights, plain(*outputs)["edges"])


def test_the_ring_does_not_move_when_the_batch_is_padded_further():
    small, large = (lesson("gfl", scene(*size), region="diou") for size in ((64, 96), (128, 160)))
    rings = []
    for method, (mine, _, targets) in (small, large):
        ring = method._valuable(mine.pyramids["neck"], mine.stages[-1], targets)
        rings.append(
            [
                level[:, : 64 // stride, : 96 // stride]
                for level, stride in zip(mine.stages[-1].layout.split(ring), (8, 16, 32), strict=True)
            ]
        )
        assert sum(level.sum() for level in rings[-1]) == pytest.approx(ring.sum().item())
    assert all(torch.equal(one, other) for one, other in zip(*rings, strict=True))
    assert any(bool(level.any()) for level in rings[0])


def test_options_of_the_ring():
    values = {}
    for options in (
        {"valuable": "overlap"},
        {"valuable": "mask"},
        {"valuable": "score"},
        {"region": "diou"},
        {"gamma": 0.9},
    ):
        method, outputs = lesson("gfl", **options)
        values[str(options)] = method(*outputs)["valuable_edges"].item()
    assert len(set(values.values())) == len(values)
    method, outputs = lesson("gfl", valuable="mask")
    assert values["{'valuable': 'mask'}"] > values["{'valuable': 'overlap'}"]
    assert values["{'gamma': 0.9}"] < values["{'valuable': 'overlap'}"]


@pytest.mark.parametrize("head", DENSE)
def test_a_batch_without_objects_is_zero_with_a_gradient(head: str):
    method, outputs = lesson(head, scene(objects=False), weight_valuable_class=1.0)
    terms = method(*outputs)
    sum(terms.values()).backward()
    assert terms.keys() == TERMS
    assert all(term == 0 for term in terms.values())


def test_positives_of_a_class_the_teacher_does_not_know_teach_no_classes():
    _, (mine, theirs, targets) = lesson("gfl")
    student = tiny("gfl").info
    strange = LD.build(
        LDConfig(), student, replace(student, classes=("disc", "ring", "cross"))
    )  # the second is another class
    only_square = Targets(targets.boxes, tuple(torch.ones_like(labels) for labels in targets.labels))
    assert strange(mine, theirs, only_square)["class"] == 0
    assert strange(mine, theirs, only_square)["edges"] > 0


def test_what_it_cannot_serve_is_refused_at_build():
    gfl, plain, edged = (
        tiny("gfl").info,
        tiny("atss", edges=False, edge_bins=17).info,
        replace(tiny("fcos").info, edges=EdgeInfo(17)),
    )
    for student, teacher, config, message in (
        (plain, gfl, LDConfig(), r"the student \(atss\) has no distance distributions; take gfl, or .* --model.edges"),
        (gfl, replace(gfl, edges=EdgeInfo(9)), LDConfig(), "have 17 and 9 bins"),
        (gfl, edged, LDConfig(), "distances are from other points in gfl and fcos"),
        (tiny("faster_rcnn").info, gfl, LDConfig(), "no dense head"),
        (gfl, replace(gfl, strides=(8, 16)), LDConfig(), "predictions are compared cell by cell"),
        (gfl, replace(gfl, classes=("a", "b", "c")), LDConfig(), "no class in common"),
        (gfl, gfl, LDConfig(0, 0, 0, 0), "all its weights are 0"),
    ):
        with pytest.raises(UserError, match=message):
            LD.build(config, student, teacher)


def test_presets_go_by_the_students_head():
    atss, gfl = tiny("atss").info, tiny("gfl").info
    assert preset("ld", atss, gfl) == {"weight_valuable": 0.0375}
    assert preset("ld", gfl, atss) == {}
