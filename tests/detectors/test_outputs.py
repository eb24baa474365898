"""Every dense detector: it runs only as far as needed, padding changes nothing, `assign` and `info` fit its outputs."""

from dataclasses import replace

import pytest
import torch

from detdistill.types import Need, Targets
from tests.detectors.builders import DENSE, scene, shake, tiny

DEPTHS = frozenset({0, 1, 2})


@pytest.mark.parametrize("head", DENSE)
def test_it_runs_only_as_far_as_needed(head: str, monkeypatch: pytest.MonkeyPatch):
    detector = tiny(head).eval()
    batch, _ = scene()
    output = detector.observe(batch, need=Need(pyramids=frozenset({"neck"})))
    assert output.stages == ()
    assert output.towers is None
    calls = []
    monkeypatch.setattr(torch.nn.GroupNorm, "forward", lambda self, x: calls.append(1) or x)
    output = detector.observe(batch, need=Need(towers=frozenset({1})))
    assert output.stages == ()
    # One block of both towers per level. The towers of RetinaNet have no norm.
    expected = 0 if head == "retinanet" else 2 * len(detector.info.strides)
    assert len(calls) == expected


@pytest.mark.parametrize("head", DENSE)
def test_losses_are_finite_without_objects_and_reach_every_weight(head: str):
    detector = tiny(head)
    for objects in (False, True):
        batch, targets = scene(objects=objects)
        output = detector.observe(batch, targets)
        total = sum(output.losses.values())
        assert total.isfinite()
        total.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in detector.parameters())


@pytest.mark.parametrize("head", DENSE)
def test_more_padding_changes_neither_boxes_nor_assignment(head: str):
    detector = shake(tiny(head)).eval()
    small, targets = scene()
    large, _ = scene(96, 128)
    assert torch.equal(large.images[:, :, :64, :96], small.images)
    for small_detections, large_detections in zip(detector.detect(small), detector.detect(large), strict=True):
        assert len(small_detections.boxes) > 0
        assert small_detections.boxes[:, 2].max() <= 96
        assert large_detections.boxes[:, 2].max() <= 96
    small_stage = detector.observe(small, targets).stages[0]
    large_stage = detector.observe(large, targets).stages[0]
    # The cells of the smaller batch are part of the larger one. The additional cells are not valid.
    assert small_stage.valid.sum() == large_stage.valid.sum()
    for name in ("positive", "valid"):
        small_levels = small_stage.layout.split(getattr(small_stage.assignment, name))
        large_levels = large_stage.layout.split(getattr(large_stage.assignment, name))
        for small_level, large_level in zip(small_levels, large_levels, strict=True):
            rows, columns = small_level.shape[1:3]
            assert torch.equal(small_level, large_level[:, :rows, :columns])


@pytest.mark.parametrize("head", DENSE)
def test_duplicating_the_batch_changes_no_loss(head: str):
    detector = shake(tiny(head)).eval()
    batch, targets = scene()
    images, sizes, ids = (torch.cat([part, part]) for part in (batch.images, batch.sizes, batch.ids))
    doubled_batch = replace(batch, images=images, sizes=sizes, originals=sizes, ids=ids, names=batch.names * 2)
    doubled_targets = Targets(targets.boxes * 2, targets.labels * 2)
    losses = detector.observe(batch, targets).losses
    for name, term in detector.observe(doubled_batch, doubled_targets).losses.items():
        torch.testing.assert_close(term, losses[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", DENSE)
def test_assign_gives_the_assignment_of_the_losses(head: str):
    detector = tiny(head)
    batch, targets = scene()
    output = detector.observe(batch, targets)
    assignment = output.assign(targets)
    assert torch.equal(assignment.matched, output.stages[0].assignment.matched)
    assert assignment.num_positives == output.stages[0].assignment.num_positives
    assert (assignment.matched[0] >= 0).any()
    assert (assignment.matched[1] < 0).all()


@pytest.mark.parametrize("head", DENSE)
def test_info_describes_the_output(head: str):
    detector = tiny(head, channels=48)
    batch, targets = scene()
    output = detector.observe(batch, targets, Need(towers=DEPTHS))
    info, stage = detector.info, output.stages[0]
    neck = output.pyramids["neck"]
    assert neck.strides == info.strides == stage.layout.strides
    assert {level.shape[1] for level in neck.levels} == {info.channels["neck"]} == {48}
    assert max(output.towers.states) == info.towers.depth
    assert stage.layout.anchors == info.grid.anchors_per_cell
    assert (stage.quality is not None) == info.has_quality
    assert (stage.edges is not None) == (info.edges is not None)
    assert sum(stage.layout.counts) == stage.logits.shape[1]
