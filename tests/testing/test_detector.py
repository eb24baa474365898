"""check_detector passes every detector, and its message says what is wrong with a detector that breaks a promise."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from detdistill.detectors.registry import DETECTORS
from detdistill.testing import check_detector
from detdistill.types import (
    Batch,
    DetectorOutput,
    EdgeInfo,
    GridInfo,
    Need,
    Predictions,
    Targets,
    TowerInfo,
    Towers,
    TowerState,
)
from tests.detectors.builders import DENSE, shake, tiny

Change = Callable[[DetectorOutput, Targets | None], DetectorOutput]


@pytest.mark.parametrize("head", DETECTORS)
def test_every_detector_passes_and_is_left_as_it_is(head: str):
    detector = shake(tiny(head))
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    check_detector(detector)
    assert detector.training
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    assert all(parameter.grad is None for parameter in detector.parameters())


@pytest.mark.parametrize("head", DENSE)
@pytest.mark.parametrize("norm", ["default", "none"])
def test_every_dense_detector_with_separable_convolutions_and_a_pafpn_passes(head: str, norm: str):
    detector = tiny(head, depthwise=True, neck="pafpn", norm=norm)
    check_detector(detector if norm == "none" else shake(detector))


class Broken(nn.Module):
    """A detector that breaks a promise.

    change: function of an output of a working detector, and of the targets, that returns what `observe` returns.
    head: name of the working detector. info: fields of its info that are replaced.
    """

    def __init__(self, change: Change, head: str = "gfl", **info: Any):
        super().__init__()
        self.working, self.change = shake(tiny(head)), change
        self.info = replace(self.working.info, **info)
        self.need: Need | None = None  # if set, it replaces the need of every call

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        return self.change(self.working.observe(batch, targets, self.need or need), targets)

    def detect(self, batch: Batch) -> Any:
        return self.working.detect(batch)

    def backbone_parameters(self) -> list[nn.Parameter]:
        return self.working.backbone_parameters()


def unchanged(output: DetectorOutput, targets: Targets | None) -> DetectorOutput:
    return output


def changed_stages(**changes: Callable) -> Change:
    """Replaces fields of every stage by a function of their value."""

    def change_stage(stage: Predictions) -> Predictions:
        return replace(stage, **{name: function(getattr(stage, name)) for name, function in changes.items()})

    def change(output: DetectorOutput, targets: Targets | None) -> DetectorOutput:
        return replace(output, stages=tuple(change_stage(stage) for stage in output.stages))

    return change


def center_and_size(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes cx cy w h instead of x1 y1 x2 y2."""
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)


def states_after_activation(output: DetectorOutput, targets: Targets | None) -> DetectorOutput:
    if output.towers is None:
        return output
    states = {}
    for depth, state in output.towers.states.items():
        towers = (state.classification, state.regression)
        states[depth] = TowerState(depth, *(tuple(level.relu() for level in levels) for levels in towers))
    if 0 in states:
        states[0] = output.towers.states[0]
    return replace(output, towers=Towers(states, output.towers.resume))


def resume_that_ignores_its_input(output: DetectorOutput, targets: Targets | None) -> DetectorOutput:
    if output.towers is None:
        return output
    return replace(output, towers=Towers(output.towers.states, lambda state: output.stages[-1]))


def resume_without_gradient(output: DetectorOutput, targets: Targets | None) -> DetectorOutput:
    if output.towers is None:
        return output
    return replace(output, towers=Towers(output.towers.states, torch.no_grad()(output.towers.resume)))


def assign_in_another_frame(output: DetectorOutput, targets: Targets | None) -> DetectorOutput:
    """An assignment to targets of a quarter of their coordinates."""
    if output.assign is None:
        return output

    def assign(targets: Targets) -> Any:
        return output.assign(Targets(tuple(boxes / 4 for boxes in targets.boxes), targets.labels))

    return replace(output, assign=assign)


def infinite_losses_without_objects(output: DetectorOutput, targets: Targets | None) -> DetectorOutput:
    if targets is None or any(len(boxes) for boxes in targets.boxes):
        return output
    return replace(output, losses={name: term / 0 for name, term in output.losses.items()})


def no_losses(output: DetectorOutput, targets: Targets | None) -> DetectorOutput:
    return replace(output, losses={})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed_stages(boxes=center_and_size), "check 'detect': .*no prediction of that class"),
        (changed_stages(boxes=lambda boxes: boxes.flip(-1)), "check 'predictions': stage 0: .*not x1 y1 x2 y2"),
        (changed_stages(boxes=lambda boxes: boxes / 100), "check 'detect': .*no prediction of that class"),
        (changed_stages(logits=lambda logits: logits / 0), "check 'predictions': stage 0: .*not finite"),
        (changed_stages(valid=torch.ones_like), "check 'predictions': .*in the padding are valid, expected none"),
        (states_after_activation, "check 'towers.resume': .*before the activation, not after it"),
        (resume_that_ignores_its_input, "check 'towers.resume': .*no gradient flows"),
        (resume_without_gradient, "check 'towers.resume': .*no gradient flows"),
        (assign_in_another_frame, "check 'assign': .*far from their boxes"),
        (infinite_losses_without_objects, "check 'losses': no image has objects: .*not finite scalars"),
        (no_losses, "check 'losses': all images have objects: output.losses is empty"),
    ],
)
def test_a_wrong_output_fails_with_the_check_and_a_type_to_read(change: Change, message: str):
    with pytest.raises(AssertionError, match=rf"^gfl, {message}.*\(see detdistill\.types\.\w+\)$"):
        check_detector(Broken(change))


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"strides": (4, 8, 16)}, r"has the strides \(8, 16, 32\), but info.strides is \(4, 8, 16\)"),
        ({"channels": {"neck": 48}}, r"has the shape \(2, 32, 12, 16\), expected \(2, 48, 12, 16\)"),
        ({"channels": {"neck": 32, "memory": 32}}, r"but info.channels names \['memory', 'neck'\]"),
        ({"classes": ("disc", "square")}, "3 class logits, but info.classes has 2 classes"),
        ({"classes": ()}, r"info.classes is \(\), expected at least one name"),
        ({"grid": GridInfo(1, "atss", quality=True)}, "has no quality logits, but info.grid.quality"),
        (
            {"grid": GridInfo(3, "atss")},
            r"anchors of stride 8 have the shape \(12, 16, 1, 4\), expected \(12, 16, 3, 4\)",
        ),
        ({"grid": None}, "the anchors of stride 8 exist, but info.grid is None"),
        ({"edges": None}, "has 17 edge bins, but info.edges is None"),
        ({"edges": EdgeInfo(9)}, "has 17 edge bins, but info.edges is EdgeInfo"),
        ({"towers": TowerInfo(2, 64)}, r"depth 1 has \[32\] channels, expected 64 \(info.towers.channels\)"),
        ({"activation": "softmax"}, "has the activation 'sigmoid', but info.activation is 'softmax'"),
    ],
)
def test_a_wrong_info_fails_with_the_expected_value(info: dict, message: str):
    with pytest.raises(AssertionError, match=message):
        check_detector(Broken(unchanged, **info))


def test_a_detector_that_runs_further_than_needed_fails():
    detector = Broken(unchanged)
    detector.need = Need(predictions=True, towers=frozenset({0, 1, 2}))
    with pytest.raises(AssertionError, match=r"check 'need': observe with Need\(.*\) runs on to the predictions"):
        check_detector(detector)


def test_a_detector_that_changes_its_batch_fails():
    class Changing(Broken):
        def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
            output = super().observe(batch, targets, need)
            batch.images[:] //= 2
            return output

    with pytest.raises(AssertionError, match=r"check 'pyramids': observe or detect changed batch.images"):
        check_detector(Changing(unchanged))


def test_wrong_queries_and_proposals_fail():
    def negated_queries(output: DetectorOutput, targets: Targets | None) -> DetectorOutput:
        if output.queries is None:
            return output
        own = replace(output.queries.own, content=-output.queries.own.content)
        return replace(output, queries=replace(output.queries, own=own))

    def halved_proposals(output: DetectorOutput, targets: Targets | None) -> DetectorOutput:
        if output.proposals is None:
            return output
        return replace(output, proposals=replace(output.proposals, boxes=output.proposals.boxes * 0.5))

    with pytest.raises(AssertionError, match=r"check 'queries.redecode': queries.redecode\(queries.own\), stage 0"):
        check_detector(Broken(negated_queries, "deformable_detr"))
    with pytest.raises(AssertionError, match=r"check 'proposals.classify': proposals.classify: logits differs"):
        check_detector(Broken(halved_proposals, "faster_rcnn"))


def raise_key_error(output: DetectorOutput, targets: Targets | None) -> DetectorOutput:
    """Fails if there are predictions, so not in the check of the pyramids."""
    if output.stages:
        raise KeyError("level3")
    return output


def fail_an_assertion_with_targets(output: DetectorOutput, targets: Targets | None) -> DetectorOutput:
    assert targets is None, "a bug of\nthe detector"
    return output


def test_any_exception_of_the_detector_is_named_with_its_check_and_chained():
    with pytest.raises(
        AssertionError, match=r"^gfl, check 'predictions': the detector raised KeyError: 'level3'$"
    ) as error:
        check_detector(Broken(raise_key_error))
    assert isinstance(error.value.__cause__, KeyError)
    message = "^gfl, check 'losses': the detector raised AssertionError: a bug of the detector"
    with pytest.raises(AssertionError, match=message) as error:
        check_detector(Broken(fail_an_assertion_with_targets))
    assert isinstance(error.value.__cause__, AssertionError)


def test_a_module_without_an_info_or_a_method_fails():
    with pytest.raises(AssertionError, match="Linear: info is a NoneType, expected a DetectorInfo"):
        check_detector(nn.Linear(1, 1))

    class WithoutObserve(nn.Module):
        info = tiny("gfl").info

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def backbone_parameters(self) -> list[nn.Parameter]:
            return list(self.layer.parameters())

    with pytest.raises(AssertionError, match=r"gfl, check 'pyramids': the detector raised AttributeError: .*observe"):
        check_detector(WithoutObserve())
