"""CrossKD: identity, isolation of gradients, taps, alignment, grids, normalisers, refusals."""

from dataclasses import replace

import pytest
import torch

from detdistill.errors import UserError
from detdistill.methods.crosskd import CrossKD, CrossKDConfig
from detdistill.methods.shared.predictions import box_distance
from detdistill.types import Need, Targets
from tests.detectors.builders import DENSE, scene, shake, tiny
from tests.methods.pairs import built, looks, pair


def entropy(quality: torch.Tensor) -> torch.Tensor:
    p = quality.sigmoid()
    return -(p * p.log() + (1 - p) * (1 - p).log())


@pytest.mark.parametrize("head", DENSE)
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_teacher_as_student_gives_the_minimum(head: str, depth: int):
    _, teacher = pair(head)
    method = built("crosskd", teacher, teacher, depth=depth)
    mine, theirs, targets = looks(method, teacher, teacher)
    terms = method(mine, theirs, targets)
    assert terms["class"] < 1e-4
    assert terms["box"] < 1e-2  # -log IoU feels the 1e-6 beside the deviation most
    if head == "atss":  # its centre-ness term is a cross-entropy: the minimum is the entropy of the target
        own = theirs.stages[-1]
        assignment = mine.stages[-1].assignment
        least = entropy(own.quality[assignment.positive]).sum() / assignment.num_positives
        torch.testing.assert_close(terms["quality"], least, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("head", DENSE)
def test_only_the_first_part_of_the_towers_learns(head: str):
    student, teacher = pair(head)
    method = built("crosskd", student, teacher, depth=1)
    sum(method(*looks(method, student, teacher)).values()).backward()
    assert all(p.grad is None for p in teacher.parameters())
    for blocks in (student.towers.classification, student.towers.regression):
        assert all(p.grad.abs().sum() > 0 for layer in blocks[0] for p in layer.parameters() if p.ndim == 4)
        assert all(p.grad is None for layer in blocks[1] for p in layer.parameters())
    tail = [
        p
        for n, p in student.named_parameters()
        if n.split(".")[-2] in ("cls_logits", "bbox_reg", "bbox_ctrness", "classifier", "regressor", "quality")
    ]
    assert tail
    assert all(p.grad is None for p in tail)
    assert all(p.grad is not None for p in student.backbone_parameters())


@pytest.mark.parametrize("depth", range(5))
def test_every_position_of_a_published_tower(depth: int):
    # Four convolutions: 0 leaves the whole head to the teacher, 4 only its predictors. What the student has before, and that alone, learns.
    student, teacher = (shake(tiny("gfl", seed=seed, tower_depth=4)).eval() for seed in (1, 2))
    method = built("crosskd", student, teacher.requires_grad_(False), depth=depth)
    mine, theirs, targets = looks(method, student, teacher)
    terms = method(mine, theirs, targets)
    assert all(term > 0 for term in terms.values())
    sum(terms.values()).backward()
    for blocks in (student.towers.classification, student.towers.regression):
        learned = [
            any(p.grad is not None and bool(p.grad.any()) for layer in block for p in layer.parameters())
            for block in blocks
        ]
        assert learned == [place < depth for place in range(4)]
    assert any(bool(p.grad.any()) for p in student.backbone_parameters())


def test_a_detector_may_teach_a_copy_of_itself():
    teacher = shake(tiny("fcos", seed=1)).eval().requires_grad_(False)
    student = shake(tiny("fcos", seed=1)).train()  # the same weights at first, of its own
    method = built("crosskd", student, teacher)
    first = method(*looks(method, student, teacher))
    sum(first.values()).backward()
    assert all(term.isfinite() and term > 0 for term in first.values())
    assert all(p.grad is None for p in teacher.parameters())


def test_it_reads_the_two_depths_it_was_given():
    student, teacher = pair("gfl")
    method = built("crosskd", student, teacher, depth=2, student_depth=1)
    assert method.need == Need(towers=frozenset({2}), predictions=True)
    assert method.student_need == Need(towers=frozenset({1}))
    assert all(term.isfinite() for term in method(*looks(method, student, teacher)).values())
    assert built("crosskd", student, teacher).teacher_depth == 1  # published 3 of 4: one convolution before the end
    assert built("crosskd", *pair("fcos")).teacher_depth == 0  # published 2 of 4


def test_alignment_makes_it_blind_to_channel_scale_and_shift():
    student, teacher = pair("atss")
    method = built("crosskd", student, teacher, depth=1, tap="pre_act")
    mine, theirs, targets = looks(method, student, teacher)
    state = mine.towers.states[1]
    changed = replace(state, classification=tuple(4 * level + 3 for level in state.classification))
    moved = replace(mine, towers=replace(mine.towers, states={1: changed}))
    before, after = (method(output, theirs, targets)["class"] for output in (mine, moved))
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-6)
    plain = built("crosskd", student, teacher, depth=1, tap="pre_act", align=False)
    before, after = (plain(output, theirs, targets)["class"] for output in (mine, moved))
    assert (before - after).abs() > 1e-3


def test_the_taps_differ_and_post_relu_sees_no_negative(monkeypatch: pytest.MonkeyPatch):
    student, teacher = pair("gfl")
    seen = []
    original = torch.Tensor.relu
    results = {}
    for tap in ("post_relu", "pre_act"):
        method = built("crosskd", student, teacher, depth=1, tap=tap)
        mine, theirs, targets = looks(method, student, teacher)
        monkeypatch.setattr(
            "detdistill.methods.crosskd.match_statistics", lambda s, t: seen.append((s.min(), t.min())) or s
        )
        method(mine, theirs, targets)
        monkeypatch.undo()
        results[tap] = method(mine, theirs, targets)["class"]
    half = len(seen) // 2
    assert all(s >= 0 and t >= 0 for s, t in seen[:half])
    assert any(s < 0 for s, _ in seen[half:])
    assert (results["post_relu"] - results["pre_act"]).abs() > 1e-6
    assert original is torch.Tensor.relu


@pytest.mark.parametrize(
    ("student", "teacher"), [("fcos", "gfl"), ("gfl", "fcos"), ("gfl", "retinanet"), ("retinanet", "atss")]
)
def test_other_families_are_compared_in_the_teachers_space(student: str, teacher: str):
    mine, theirs = pair(student, teacher)
    method = built("crosskd", mine, theirs)
    output, lesson, targets = looks(method, mine, theirs)
    assignment = method._assignment(output, lesson, targets)
    assert assignment.matched.shape == lesson.stages[-1].logits.shape[:2]
    assert torch.equal(assignment.matched, lesson.assign(targets).matched)
    total = sum(method(output, lesson, targets).values())
    assert total.isfinite()
    assert total > 0


def test_edges_where_both_have_them_else_boxes():
    _, gfl = pair("gfl")
    _, atss = pair("atss")
    batch, _ = scene()
    need = Need(predictions=True)
    with torch.no_grad():
        one, other = gfl.observe(batch, need=need).stages[0], atss.observe(batch, need=need).stages[0]
        config = CrossKDConfig()
        assert box_distance(one, one, config).abs().max() < 1e-5
        mixed = box_distance(one, other, config)
        assert mixed.shape == one.logits.shape[:2]
        assert mixed.max() <= 2  # 1 - GIoU


@pytest.mark.parametrize("normalizer", ["positives", "trust"])
def test_mean_terms_do_not_change_when_the_batch_is_doubled(normalizer: str):
    student, teacher = pair("gfl")
    method = built("crosskd", student, teacher, box_normalizer=normalizer)
    batch, targets = scene()
    twice = replace(
        batch,
        **{name: torch.cat([getattr(batch, name)] * 2) for name in ("images", "sizes", "originals", "ids")},
        names=batch.names * 2,
    )
    both = Targets(targets.boxes * 2, targets.labels * 2)
    once = method(*looks(method, student, teacher))
    doubled = method(*looks(method, student, teacher, (twice, both)))
    for name, term in once.items():
        torch.testing.assert_close(doubled[name], term, rtol=2e-2, atol=1e-5)  # alignment's m - 1 against 2m - 1


@pytest.mark.parametrize("head", DENSE)
def test_a_batch_without_objects_is_finite(head: str):
    student, teacher = pair(head)
    method = built("crosskd", student, teacher)
    terms = method(*looks(method, student, teacher, scene(objects=False)))
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())


def test_widths_meet_in_a_learned_connector():
    student, teacher = pair("fcos", channels=48)
    method = built("crosskd", student, teacher, depth=1)
    assert [tuple(p.shape) for p in method.parameters() if p.ndim == 4] == [(32, 48, 1, 1)] * 2
    sum(method(*looks(method, student, teacher)).values()).backward()
    assert all(p.grad.abs().sum() > 0 for p in method.parameters() if p.ndim == 4)


def test_what_it_cannot_serve_is_refused_at_build():
    student, teacher = (tiny(head).info for head in ("fcos", "gfl"))
    for config, mine, theirs, message in (
        (CrossKDConfig(), tiny("faster_rcnn").info, teacher, "no towers; take retinanet"),
        (CrossKDConfig(), student, replace(teacher, strides=(8, 16)), "needs its own grid"),
        (CrossKDConfig(), student, replace(teacher, classes=("ring", "oval")), "no class in common"),
        (CrossKDConfig(depth=-3), student, teacher, "beyond the teacher's towers"),
        (CrossKDConfig(weight_class=0, weight_box=0), student, teacher, "all its weights are 0"),
        (CrossKDConfig(depth=5), student, teacher, "beyond the teacher's towers"),
        (CrossKDConfig(student_depth=3), student, teacher, "beyond the student's towers, which have 2"),
        (CrossKDConfig(weight_quality=1.0), student, teacher, "centre-ness"),
        (CrossKDConfig(box="edges"), student, student, "distance distributions"),
    ):
        with pytest.raises(UserError, match=message):
            CrossKD.build(config, mine, theirs)


def test_valid_rows_alone_count_for_the_class_term():
    # RetinaNet's ambiguous anchors and all padded cells take no part: making the teacher scream there changes nothing.
    student, teacher = pair("retinanet")
    method = built("crosskd", student, teacher)
    mine, theirs, targets = looks(method, student, teacher)
    valid = mine.stages[-1].assignment.valid
    assert not valid.all()
    loud = theirs.stages[-1].logits.masked_fill(~valid[..., None], 20.0)
    screaming = replace(theirs, stages=(replace(theirs.stages[-1], logits=loud),))
    for name, term in method(mine, theirs, targets).items():
        torch.testing.assert_close(method(mine, screaming, targets)[name], term)
