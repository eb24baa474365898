"""check_detector: does a detector keep every promise on which the methods rely?"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from detdistill.testing.continuations import check_classify, check_redecode, check_resume
from detdistill.testing.expect import CheckError, expect, expect_same_predictions, observe
from detdistill.testing.outputs import check_assign, check_assignment, check_detect, check_predictions, check_pyramids
from detdistill.testing.scene import Scene, scene
from detdistill.types import Batch, Detector, DetectorInfo, Targets, required

Check = Callable[[Any, Batch, Targets], None]


def check_detector(detector: Detector, example: Scene | None = None) -> None:
    """Raises AssertionError if `detector` breaks a promise of `detdistill.types.Detector` or of the types it returns.

    The detector is an nn.Module on any device. The checks run on a copy of it, in this order:
    info: the fields of `info`, and `backbone_parameters`.
    pyramids: shapes, strides, sizes and anchors of the maps.
    predictions: shapes, value ranges and layout of the stages.
    need: `observe` runs no further than `need` requires.
    detect: detections are sorted, inside the image, and agree with the last stage.
    assign: positive anchors lie at the boxes to which they are assigned.
    towers.resume, queries.redecode, proposals.classify: a continuation repeats the predictions, and lets gradients
        through while the detector is frozen.
    side effects: evaluation changes no weights, mode or input, and gives the same result for bytes and floats.
    losses: the task losses are finite with and without objects, and their gradient reaches the backbone.

    example: a batch with padding and its targets. None: the built-in pictures of `scene`.
    The message names the detector's kind and the check, says what is wrong and what was expected, and which type
    describes it. Any other exception that the detector raises during a check is named in the same way, and chained.
    """
    info = getattr(detector, "info", None)
    problem = f"{type(detector).__name__}: info is a {type(info).__name__}, expected a DetectorInfo"
    expect(isinstance(info, DetectorInfo), problem, "Detector")
    assert isinstance(info, DetectorInfo)
    batch, targets = example or scene(max(len(info.classes), 1))
    with _named(info.kind, "info"):
        expect(isinstance(detector, nn.Module), "the detector is no nn.Module", "Detector")
        copied: Any = copy.deepcopy(detector)
        parameter = next(copied.parameters(), None)
        expect(parameter is not None, "the detector has no parameters", "Detector")
        batch, targets = batch.to(required(parameter).device), targets.to(required(parameter).device)
    pixels = batch.images.clone()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, check in CHECKS.items():
            with _named(info.kind, name):
                copied.eval().requires_grad_(True).zero_grad()
                check(copied, batch, targets)
                problem = "observe or detect changed batch.images, which other detectors read too; change a copy"
                expect(torch.equal(batch.images, pixels), problem, "Batch")


@contextmanager
def _named(kind: str, check: str) -> Iterator[None]:
    """Adds the detector's kind and the check to the message of any exception, and makes it an AssertionError."""
    try:
        yield
    except CheckError as error:
        raise AssertionError(f"{kind}, check {check!r}: {error}") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise AssertionError(f"{kind}, check {check!r}: the detector raised {reason}") from error


def _check_info(detector: Any, batch: Batch, targets: Targets) -> None:
    """Classes are named once, the neck has a width, and the backbone's parameters are some of the detector's."""
    info: DetectorInfo = detector.info
    problem = f"info.classes is {info.classes}, expected at least one name, and no name twice"
    expect(bool(info.classes) and len(set(info.classes)) == len(info.classes), problem, "DetectorInfo")
    problem = f"info.channels is {dict(info.channels)}, expected an entry 'neck'"
    expect("neck" in info.channels, problem, "DetectorInfo")
    parameters = {id(parameter) for parameter in detector.parameters()}
    backbone = {id(parameter) for parameter in detector.backbone_parameters()}
    expect(bool(backbone), "backbone_parameters() is empty, expected the parameters below the neck", "Detector")
    problem = "backbone_parameters() contains parameters that are not in parameters()"
    expect(backbone <= parameters, problem, "Detector")


def _check_need(detector: Any, batch: Batch, targets: Targets) -> None:
    """Each need runs fewer modules than `Need(predictions=True)`."""
    info: DetectorInfo = detector.info
    needs: dict[str, dict[str, Any]] = {"pyramids={'neck'}": {"pyramids": frozenset({"neck"})}}
    if info.queries is not None:
        needs["queries=True"] = {"queries": True}
    if info.proposals is not None:
        needs |= {"proposals=True": {"proposals": True}, "classify=True": {"classify": True}}
    if info.towers is not None:
        needs |= {f"towers={{{depth}}}": {"towers": frozenset({depth})} for depth in range(info.towers.depth + 1)}
    with _count_module_calls(detector) as calls:
        observe(detector, batch, predictions=True)
        calls_for_predictions = calls[0]
        for name, need in needs.items():
            calls[0] = 0
            output = observe(detector, batch, **need)
            counts = f"{calls[0]} modules, and Need(predictions=True) runs {calls_for_predictions}"
            problem = (
                f"observe with Need({name}) runs on to the predictions: it runs {counts}; stop once the need is met"
            )
            expect(calls[0] < calls_for_predictions, problem, "Need")
            problem = f"observe without targets, with Need({name}), returned losses, expected none"
            expect(not output.losses, problem, "DetectorOutput")


@contextmanager
def _count_module_calls(detector: nn.Module) -> Iterator[list[int]]:
    """Counts in the only item of the list how many modules run."""
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    handles = [module.register_forward_hook(count) for module in detector.modules()]
    yield calls
    for handle in handles:
        handle.remove()


def _check_side_effects(detector: Any, batch: Batch, targets: Targets) -> None:
    """Evaluation gives the same predictions for bytes and floats, and changes neither mode nor weights."""
    state = copy.deepcopy(detector.state_dict())
    from_bytes = observe(detector, batch, predictions=True).stages[-1]
    float_batch = replace(batch, images=batch.images.float() / 255)
    from_floats = observe(detector, float_batch, predictions=True).stages[-1]
    name = "observe on images as floats in 0..1, against the same images as bytes"
    expect_same_predictions(from_floats, from_bytes, name, "Batch")
    detector.detect(batch)
    expect(not detector.training, "observe or detect changed the mode from evaluation to training", "Detector")
    after = detector.state_dict()
    changed = sorted(after.keys() ^ state.keys())[:3]
    expect(after.keys() == state.keys(), f"observe or detect changed the state dict's keys: {changed}", "Detector")
    changed = [name for name, value in state.items() if not torch.equal(after[name], value)][:3]
    expect(not changed, f"observe or detect changed weights in evaluation mode: {changed}", "Detector")


def _check_losses(detector: Any, batch: Batch, targets: Targets) -> None:
    """The losses and their gradients are finite, whether all, one or none of the images has objects."""
    detector.train()
    nothing = Targets(tuple(boxes[:0] for boxes in targets.boxes), tuple(labels[:0] for labels in targets.labels))
    first = Targets((targets.boxes[0], *nothing.boxes[1:]), (targets.labels[0], *nothing.labels[1:]))
    backbone = [parameter for parameter in detector.backbone_parameters() if parameter.requires_grad]
    is_reached = False  # in one case is enough: some losses are 0 without objects
    cases = {"all images have objects": targets, "one image has objects": first, "no image has objects": nothing}
    for case, case_targets in cases.items():
        detector.zero_grad()
        output = detector.observe(batch, case_targets)
        expect(bool(output.losses), f"{case}: output.losses is empty, although targets were given", "DetectorOutput")
        wrong = [name for name, term in output.losses.items() if term.shape != () or not bool(term.isfinite())]
        expect(not wrong, f"{case}: the losses {wrong} are not finite scalars", "DetectorOutput")
        assignment = output.stages[-1].assignment
        problem = f"{case}: the last stage has no assignment, although targets were given"
        expect(assignment is not None, problem, "Predictions")
        check_assignment(required(assignment), case_targets, f"{case}: assignment of the last stage")
        torch.stack(list(output.losses.values())).sum().backward()
        gradients = [parameter.grad for parameter in detector.parameters() if parameter.grad is not None]
        expect(bool(gradients), f"{case}: no parameter gets a gradient from the losses", "DetectorOutput")
        is_finite = all(bool(gradient.isfinite().all()) for gradient in gradients)
        expect(is_finite, f"{case}: gradients of the losses are not finite", "DetectorOutput")
        is_reached |= any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in backbone)
    expect(is_reached or not backbone, "the gradient of the losses does not reach the backbone", "Detector")


CHECKS: dict[str, Check] = {
    "info": _check_info,
    "pyramids": check_pyramids,
    "predictions": check_predictions,
    "need": _check_need,
    "detect": check_detect,
    "assign": check_assign,
    "towers.resume": check_resume,
    "queries.redecode": check_redecode,
    "proposals.classify": check_classify,
    "side effects": _check_side_effects,
    "losses": _check_losses,
}
"""The checks of `check_detector` by name, in their order."""
