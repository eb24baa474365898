"""What holds for every dense detector: towers can be left and entered, needs are met and no more, frames stay."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from detdistill.types import Need, Targets
from tests.detectors.builders import DENSE, scene, shake, tiny

ALL = frozenset({0, 1, 2})


@pytest.mark.parametrize("head", DENSE)
def test_resuming_at_every_depth_equals_the_plain_decode(head: str):
    detector = shake(tiny(head)).eval()
    batch, _ = scene()
    with torch.no_grad():
        output = detector.observe(batch, need=Need(towers=ALL, predictions=True))
        plain = output.stages[0]
        for depth in ALL:
            again = output.towers.resume(output.towers.states[depth])
            torch.testing.assert_close(again.logits, plain.logits, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(again.boxes, plain.boxes, rtol=1e-5, atol=1e-3)
    assert plain.logits.std() > 1e-3


@pytest.mark.parametrize("head", DENSE)
def test_states_are_kept_before_the_activation(head: str):
    # An in-place ReLU behind the convolution would leave no negative value: what hooks on torchvision's RetinaNet see.
    output = shake(tiny(head)).eval().observe(scene()[0], need=Need(towers=ALL))
    for depth in (1, 2):
        for level in (*output.towers.states[depth].classification, *output.towers.states[depth].regression):
            assert level.min() < 0


@pytest.mark.parametrize("head", DENSE)
def test_it_stops_once_the_need_is_met(head: str, monkeypatch: pytest.MonkeyPatch):
    detector = tiny(head).eval()
    batch, _ = scene()
    output = detector.observe(batch, need=Need(pyramids=frozenset({"neck"})))
    assert output.stages == ()
    assert output.towers is None
    calls = []
    monkeypatch.setattr(torch.nn.GroupNorm, "forward", lambda self, x: calls.append(1) or x)
    output = detector.observe(batch, need=Need(towers=frozenset({1})))
    assert output.stages == ()
    expected = (
        0 if head == "retinanet" else 2 * len(detector.info.strides)
    )  # one block of both towers on each level; RetinaNet's have no norm
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
def test_padding_further_moves_nothing(head: str):
    detector = shake(tiny(head)).eval()
    small, targets = scene()
    large, _ = scene(96, 128)
    assert torch.equal(large.images[:, :, :64, :96], small.images)
    for one, two in zip(detector.detect(small), detector.detect(large), strict=True):
        assert len(one.boxes) > 0
        assert one.boxes[:, 2].max() <= 96
        assert two.boxes[:, 2].max() <= 96
    before, after = (detector.observe(batch, targets).stages[0] for batch in (small, large))
    # The rows of the smaller batch are found in the larger; the wider border of the maps is not valid there.
    assert before.valid.sum() == after.valid.sum()
    for name in ("matched", "valid"):
        parts = (stage.layout.split(getattr(stage.assignment, name)) for stage in (before, after))
        for one, two in zip(*parts, strict=True):
            rows, columns = one.shape[1:3]
            valid = one >= 0 if name == "matched" else one
            assert torch.equal(valid, (two >= 0 if name == "matched" else two)[:, :rows, :columns])


@pytest.mark.parametrize("head", ["atss", "gfl"])
def test_our_losses_ignore_what_lies_in_the_padding(head: str, monkeypatch: pytest.MonkeyPatch):
    detector = shake(tiny(head)).eval()
    batch, targets = scene()
    stage = detector.observe(batch, targets).stages[0]
    assert 0 < (~stage.valid).sum() < stage.valid.sum()
    plain = detector.head.rows

    def losses_with(changed: Tensor) -> dict[str, Tensor]:
        """The task losses where the head says something else in the `changed` rows (B, N)."""

        def rows(*arguments: object) -> tuple[Tensor | None, ...]:
            parts = plain(*arguments)
            flags = [None if part is None else changed.view(*changed.shape, *[1] * (part.ndim - 2)) for part in parts]
            return tuple(
                None if part is None else torch.where(flag, part + 7.0, part)
                for part, flag in zip(parts, flags, strict=True)
            )

        monkeypatch.setattr(detector.head, "rows", rows)
        return dict(detector.observe(batch, targets).losses)

    nothing = torch.zeros_like(stage.valid)
    before, padded, everywhere = (losses_with(changed) for changed in (nothing, ~stage.valid, ~nothing))
    for name, term in before.items():
        assert torch.equal(padded[name], term)
    assert not torch.equal(everywhere["classification"], before["classification"])


@pytest.mark.parametrize("head", DENSE)
def test_duplicating_the_batch_changes_no_loss(head: str):
    detector = shake(tiny(head)).eval()
    batch, targets = scene()
    images, sizes, ids = (torch.cat([part, part]) for part in (batch.images, batch.sizes, batch.ids))
    twice = replace(batch, images=images, sizes=sizes, originals=sizes, ids=ids, names=batch.names * 2)
    both = Targets(targets.boxes * 2, targets.labels * 2)
    once = detector.observe(batch, targets).losses
    for name, term in detector.observe(twice, both).losses.items():
        torch.testing.assert_close(term, once[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", DENSE)
def test_assign_is_the_assignment_of_its_own_losses(head: str):
    detector = tiny(head)
    batch, targets = scene()
    output = detector.observe(batch, targets)
    again = output.assign(targets)
    assert torch.equal(again.matched, output.stages[0].assignment.matched)
    assert again.num_positives == output.stages[0].assignment.num_positives
    assert (again.matched[0] >= 0).any()
    assert (again.matched[1] < 0).all()


@pytest.mark.parametrize("head", DENSE)
def test_info_says_what_the_output_is(head: str):
    detector = tiny(head, channels=48)
    batch, targets = scene()
    output = detector.observe(batch, targets, Need(towers=ALL))
    info, stage = detector.info, output.stages[0]
    neck = output.pyramids["neck"]
    assert neck.strides == info.strides == stage.layout.strides
    assert {level.shape[1] for level in neck.levels} == {info.channels["neck"]} == {48}
    assert max(output.towers.states) == info.towers.depth
    assert stage.layout.anchors == info.grid.anchors_per_cell
    assert (stage.quality is not None) == info.quality
    assert (stage.edges is not None) == (info.edges is not None)
    assert sum(stage.layout.counts) == stage.logits.shape[1]
