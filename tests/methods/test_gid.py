"""GID: instances of disagreement, three terms on them, and LD's variant."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import box_iou

from detdistill.errors import UserError
from detdistill.geometry import disagreement, pool_rois, strongest
from detdistill.losses import giou_distance, quality_focal, relation_distance
from detdistill.methods.gid import GID, GIDConfig
from detdistill.types import Batch, Need, Targets
from tests.detectors.builders import scene, tiny
from tests.methods.pairs import built, looks, pair

HEADS = ["retinanet", "fcos", "atss", "gfl", "faster_rcnn"]


def made(head: str, **options):
    """The method of the paper, and what it is called with."""
    student, teacher = pair(head)
    method = built("gid", student, teacher, **{"variant": "paper", **options})
    return method, student, teacher, looks(method, student, teacher)


def identity(method: GID) -> GID:
    """Its connector as if it were not there."""
    nn.init.dirac_(method.connector.weight)
    nn.init.zeros_(method.connector.bias)
    return method


@pytest.mark.parametrize("head", HEADS)
def test_it_is_zero_for_itself_and_teaches_the_student_only(head: str):
    method, student, teacher, (mine, theirs, targets) = made(head)
    identity(method)
    assert all(term.abs() < 1e-5 for term in method(mine, mine, targets).values())
    terms = method(mine, theirs, targets)
    assert terms.keys() == {"feature", "relation", "response"}
    assert terms["feature"] > 0 and terms["response"] > 0
    sum(terms.values()).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert method.connector.weight.grad.abs().sum() > 0
    reached = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("head" in name for name in reached) and any("head" not in name for name in reached)


def test_instances_lie_apart_within_their_images_and_no_label_has_a_part_in_them():
    method, _, _, (mine, theirs, targets) = made("fcos")
    instances = method._instances(mine.stages[0], theirs.stages[0], mine)
    for boxes, (height, width) in zip(instances.boxes, mine.pyramids["neck"].sizes.tolist(), strict=True):
        assert 1 < len(boxes) <= 10
        assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height, width, height])).all()
        assert (box_iou(boxes, boxes) - torch.eye(len(boxes))).max() <= 0.3 + 1e-5
    terms = method(mine, theirs, targets)
    for name, term in method(mine, theirs, scene(objects=False)[1]).items():
        assert term == terms[name]


def test_the_terms_are_the_formulas():
    method, _, _, (mine, theirs, targets) = made(
        "retinanet", weight_feature=2.0, weight_relation=3.0, weight_response=5.0, pairs="sum"
    )
    terms = method(mine, theirs, targets)
    instances = method._instances(mine.stages[0], theirs.stages[0], mine)
    cuts = [pool_rois(output.pyramids["neck"].levels, (8, 16, 32), instances.boxes) for output in (mine, theirs)]
    s, t = method.connector(cuts[0]).flatten(1), cuts[1].flatten(1)
    torch.testing.assert_close(terms["feature"], 2 * (s - t).square().sum(1).sqrt().mean())
    first = len(instances.boxes[0])
    relation = (relation_distance(s[:first], t[:first]) + relation_distance(s[first:], t[first:])) / 2
    assert relation > 0
    torch.testing.assert_close(terms["relation"], 3 * relation)
    mask = mine.assign(instances).matched >= 0
    mask &= mine.stages[0].valid
    guess, taught = mine.stages[0], theirs.stages[0]
    classes = quality_focal(guess.logits[mask], taught.logits[mask].sigmoid()).sum()
    boxes = giou_distance(guess.boxes[mask], taught.boxes[mask]).sum()
    torch.testing.assert_close(terms["response"], 5 * (0.1 * classes + boxes) / mask.sum())


def test_relations_are_of_one_image_and_one_instance_has_none():
    method, _, _, (mine, theirs, targets) = made("fcos", instances=1)
    terms = method(mine, theirs, targets)
    assert terms["relation"] == 0
    assert terms["feature"] > 0
    sum(terms.values()).backward()
    few = made("fcos", instances=3)
    summed, mean = (built("gid", *pair("fcos"), variant="paper", instances=3, pairs=pairs) for pairs in ("sum", "mean"))
    counts = [len(own) for own in few[0]._instances(few[3][0].stages[0], few[3][1].stages[0], few[3][0]).labels]
    assert counts == [3, 3]
    torch.testing.assert_close(mean(*few[3])["relation"] * 6, summed(*few[3])["relation"])


@pytest.mark.parametrize("variant", ["paper", "ld"])
def test_no_candidates_leave_nothing_to_learn(variant: str):
    method, student, _, (mine, theirs, targets) = made("gfl", variant=variant)
    stage = theirs.stages[0]
    terms = method(mine, replace(theirs, stages=(replace(stage, valid=torch.zeros_like(stage.valid)),)), targets)
    assert all(term == 0 for term in terms.values())
    sum(terms.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


@pytest.mark.parametrize("variant", ["paper", "ld"])
def test_padding_takes_no_part(variant: str):
    method, _, _, (mine, theirs, targets) = made("fcos", variant=variant)
    terms, stage = method(mine, theirs, targets), theirs.stages[0]
    assert not stage.valid.all()
    louder = torch.where(stage.valid[..., None], stage.logits, 9.0)
    for name, term in method(mine, replace(theirs, stages=(replace(stage, logits=louder),)), targets).items():
        torch.testing.assert_close(term, terms[name])


@pytest.mark.parametrize("variant", ["paper", "ld"])
def test_a_batch_twice_is_no_more_than_once(variant: str):
    method, student, teacher, inputs = made("gfl", variant=variant)
    batch, targets = scene()
    parts = (torch.cat([part, part]) for part in (batch.images, batch.sizes, batch.originals, batch.ids))
    twice = Batch(*parts, batch.names * 2), Targets(targets.boxes * 2, targets.labels * 2)
    doubled = method(*looks(method, student, teacher, twice))
    for name, term in method(*inputs).items():
        torch.testing.assert_close(doubled[name], term, rtol=1e-3, atol=1e-6)


def test_the_rpn_is_compared_and_the_teachers_second_stage_never_runs():
    method, _, _, (_, theirs, _) = made("faster_rcnn")
    assert method.need == Need(pyramids=frozenset({"neck"}), proposals=True)
    assert len(theirs.stages) == 1


def test_the_gfl_of_lds_code_by_hand():
    student, teacher = pair("gfl")
    method = built("gid", student, teacher)  # its preset
    assert method.config.variant == "ld" and list(method.parameters()) == []
    mine, theirs, targets = looks(method, student, teacher)
    guess, taught = mine.stages[0], theirs.stages[0]
    scores, boxes, _ = disagreement((guess.scores(), taught.scores()), (guess.boxes, taught.boxes), side="difference")
    expected, first, silent = 0.0, 0, 0
    for count, s, t in zip(
        guess.layout.counts, mine.pyramids["neck"].levels, theirs.pyramids["neck"].levels, strict=True
    ):
        rows = slice(first, first + count)
        first += count
        if not guess.assignment.positive[:, rows].any():
            silent += 1
            continue
        valid = guess.valid[:, rows].flatten()
        cells = valid.nonzero()[:, 0]
        picked = cells[strongest(scores[:, rows].flatten()[valid], boxes[:, rows].flatten(0, 1)[valid], 10, 0.3)]
        assert len(picked) <= 10
        flat = [level.flatten(2).transpose(1, 2).flatten(0, 1)[picked] for level in (s, t)]
        expected += F.mse_loss(*flat)
    terms = method(mine, theirs, targets)
    torch.testing.assert_close(terms["pixels"], 2 * expected)
    assert expected > 0
    assert method(mine, mine, targets)["pixels"] == 0
    empty = looks(method, student, teacher, scene(objects=False))
    assert method(*empty)["pixels"] == 0


def test_classes_are_mapped_by_name():
    student, teacher = pair("fcos")
    method = built("gid", student, teacher, variant="paper")
    mine, theirs, targets = looks(method, student, teacher)
    other = replace(teacher.info, classes=("cross", "plane", "square"))
    mixed = GID.build(method.config, student.info, other)
    assert (mixed.shared.student, mixed.shared.teacher) == ((1, 2), (2, 0))
    mixed.load_state_dict(method.state_dict())
    stage = theirs.stages[0]
    instances = []
    mixed._response = lambda guess, taught, output, found: instances.append(found) or guess.logits.sum()
    mixed(mine, replace(theirs, stages=(replace(stage, logits=stage.logits[..., [2, 0, 1]]),)), targets)
    assert {label for own in instances[0].labels for label in own.tolist()} == {1, 2}


def test_what_it_can_not_serve_is_refused_at_build():
    fcos, retinanet, two_stage, queries = (
        tiny(head).info for head in ("fcos", "retinanet", "faster_rcnn", "deformable_detr")
    )
    config = GIDConfig()
    with pytest.raises(UserError, match=r"the teacher \(deformable_detr\) has no dense grid"):
        GID.build(config, fcos, queries)
    with pytest.raises(UserError, match=r"with 1 anchors a cell, the teacher at .* with 9"):
        GID.build(config, fcos, retinanet)
    with pytest.raises(UserError, match=r"strides \(4, 8, 16\) .* --model.strides"):
        GID.build(config, replace(fcos, strides=(4, 8, 16)), fcos)
    with pytest.raises(UserError, match="an RPN and a dense head"):
        GID.build(config, fcos, two_stage)
    with pytest.raises(UserError, match="no class in common"):
        GID.build(config, replace(fcos, classes=("cat",)), fcos)
    GID.build(config, replace(two_stage, classes=("cat",)), two_stage)  # objectness has no class
