"""check_detector passes every detector of the house and tells what is wrong with a bent one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from detdistill.detectors.registry import DETECTORS
from detdistill.testing import check_detector, scene
from detdistill.types import Batch, DetectorOutput, GridInfo, Need, Targets, TowerInfo, Towers, TowerState
from tests.detectors.builders import shake, tiny


@pytest.mark.parametrize("head", DETECTORS)
def test_every_detector_passes_and_is_left_alone(head: str):
    detector = shake(tiny(head))
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    check_detector(detector)
    assert detector.training
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    assert all(parameter.grad is None for parameter in detector.parameters())


class Bent(nn.Module):
    """A detector whose outputs are bent. What `observe` gives goes through `bend`, with the targets it was asked for."""

    def __init__(
        self, bend: Callable[[DetectorOutput, Targets | None], DetectorOutput], head: str = "gfl", **info: Any
    ):
        super().__init__()
        self.inner, self.bend = shake(tiny(head)), bend
        self.info = replace(self.inner.info, **info)
        self.need: Need | None = None

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        return self.bend(self.inner.observe(batch, targets, self.need or need), targets)

    def detect(self, batch: Batch) -> Any:
        return self.inner.detect(batch)

    def backbone_parameters(self) -> list[nn.Parameter]:
        return self.inner.backbone_parameters()


def plain(output: DetectorOutput, targets: Targets | None) -> DetectorOutput:
    return output


def stages_bent(**changes: Callable) -> Callable:
    """Every stage with these fields changed."""

    def bend(output: DetectorOutput, targets: Targets | None) -> DetectorOutput:
        return replace(
            output,
            stages=tuple(
                replace(s, **{name: f(getattr(s, name)) for name, f in changes.items()}) for s in output.stages
            ),
        )

    return bend


def activated(output: DetectorOutput, targets: Targets | None) -> DetectorOutput:
    if output.towers is None:
        return output
    after = {
        depth: TowerState(
            depth, tuple(x.relu() for x in state.classification), tuple(x.relu() for x in state.regression)
        )
        for depth, state in output.towers.states.items()
        if depth
    }
    after |= {0: output.towers.states[0]} if 0 in output.towers.states else {}
    return replace(output, towers=Towers(after, output.towers.resume))


def deaf(output: DetectorOutput, targets: Targets | None) -> DetectorOutput:
    """A resume that gives the plain predictions, whatever it is given."""
    return (
        output
        if output.towers is None
        else replace(output, towers=Towers(output.towers.states, lambda state: output.stages[-1]))
    )


def cut_off(output: DetectorOutput, targets: Targets | None) -> DetectorOutput:
    """A resume under no_grad."""
    return (
        output
        if output.towers is None
        else replace(output, towers=Towers(output.towers.states, torch.no_grad()(output.towers.resume)))
    )


def elsewhere(output: DetectorOutput, targets: Targets | None) -> DetectorOutput:
    """Targets taken for half their size: another frame."""
    if output.assign is None:
        return output
    half = lambda given: Targets(tuple(boxes / 4 for boxes in given.boxes), given.labels)  # noqa: E731
    return replace(output, assign=lambda given: output.assign(half(given)))


def infinite_when_empty(output: DetectorOutput, targets: Targets | None) -> DetectorOutput:
    if targets is None or any(len(boxes) for boxes in targets.boxes):
        return output
    return replace(output, losses={name: term / 0 for name, term in output.losses.items()})


@pytest.mark.parametrize(
    ("bend", "told"),
    [
        (
            stages_bent(boxes=lambda b: torch.cat([(b[..., :2] + b[..., 2:]) / 2, b[..., 2:] - b[..., :2]], -1)),
            "no prediction of that class",
        ),
        (stages_bent(boxes=lambda b: b.flip(-1)), "not x1 y1 x2 y2"),
        (stages_bent(boxes=lambda b: b / 100), "no prediction of that class"),
        (stages_bent(logits=lambda z: z / 0), "not finite"),
        (stages_bent(valid=torch.ones_like), "in the padding"),
        (activated, "after its activation"),
        (deaf, "no gradient flows"),
        (cut_off, "no gradient flows"),
        (elsewhere, "far from their boxes"),
        (infinite_when_empty, "no image has objects"),
        (lambda output, targets: replace(output, losses={}), "losses none"),
    ],
)
def test_a_bent_output_is_told(bend: Callable, told: str):
    with pytest.raises(AssertionError, match=told):
        check_detector(Bent(bend))


@pytest.mark.parametrize(
    ("info", "told"),
    [
        ({"strides": (4, 8, 16)}, "but info.strides is"),
        ({"channels": {"neck": 48}}, "should be"),
        ({"channels": {"neck": 32, "memory": 32}}, "info.channels names"),
        ({"classes": ("disc", "square")}, "3 class logits for 2 classes"),
        ({"grid": GridInfo(1, "atss", quality=True)}, "info.grid.quality"),
        ({"edges": None}, "info.edges is None"),
        ({"towers": TowerInfo(2, 64)}, "not 64 wide"),
        ({"activation": "softmax"}, "info.activation is softmax"),
    ],
)
def test_an_info_that_does_not_hold_is_told(info: dict, told: str):
    with pytest.raises(AssertionError, match=told):
        check_detector(Bent(plain, **info))


def test_a_look_that_goes_on_or_draws_on_its_batch_is_told():
    endless = Bent(plain)
    endless.need = Need(predictions=True, towers=frozenset({0, 1, 2}))
    with pytest.raises(AssertionError, match="runs on to the predictions"):
        check_detector(endless)

    class Scribbler(Bent):
        def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
            output = super().observe(batch, targets, need)
            batch.images[:] //= 2
            return output

    with pytest.raises(AssertionError, match="batch's images"):
        check_detector(Scribbler(plain))


def test_queries_and_proposals_that_go_astray_are_told():
    def other_queries(output: DetectorOutput, targets: Targets | None) -> DetectorOutput:
        queries = output.queries
        return (
            output
            if queries is None
            else replace(output, queries=replace(queries, own=replace(queries.own, content=-queries.own.content)))
        )

    def other_boxes(output: DetectorOutput, targets: Targets | None) -> DetectorOutput:
        given = output.proposals
        return output if given is None else replace(output, proposals=replace(given, boxes=given.boxes * 0.5))

    with pytest.raises(AssertionError, match="redecode"):
        check_detector(Bent(other_queries, "deformable_detr"))
    with pytest.raises(AssertionError, match="classify"):
        check_detector(Bent(other_boxes, "faster_rcnn"))


def test_the_scene_is_padded_and_its_boxes_lie_inside():
    batch, targets = scene(2, (96, 128), count=3)
    assert batch.images.shape == (3, 3, 96, 128)
    assert batch.images[-1, :, int(batch.sizes[-1, 0]) :].sum() == 0
    assert (batch.sizes[-1] < batch.sizes[0]).all()
    for boxes, labels, (height, width) in zip(targets.boxes, targets.labels, batch.sizes.tolist(), strict=True):
        assert len(boxes)
        assert boxes.min() >= 0
        assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
        assert set(labels.tolist()) <= {0, 1}
