"""What every method may rely on in a detector."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from detdistill.geometry import cell_points, centers, square_anchors
from detdistill.testing.continuations import proposals_classify, queries_redecode, towers_resume
from detdistill.testing.expect import expect, look, same_stage
from detdistill.testing.scene import Scene, scene
from detdistill.types import Assignment, Batch, Detector, DetectorInfo, Targets, required

REACH = 1.5  # strides: hosts count cells from corner or middle, and their anchors drift on coarse levels
SHARED = 0.1  # of the smaller of a positive anchor and its box


def check_detector(detector: Detector, example: Scene | None = None) -> None:
    """Raises AssertionError where `detector`, a module on any device, breaks what `types.detector` and `types` promise.

    Types, shapes, strides and frames of one look; that a need which is met ends it; finite losses with and without objects; detections in
    the frame of the stages; every continuation equal to the plain look at every depth, and open to gradients while frozen; a batch and
    weights that a look leaves alone. It works on a copy. example: a batch and its targets, padded; none: the built-in shapes.
    """
    subject, device = cast(Any, copy.deepcopy(detector)), next(cast(nn.Module, detector).parameters()).device
    batch, targets = example or scene(len(detector.info.classes))
    batch, targets = batch.to(device), targets.to(device)
    pixels = batch.images.clone()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for check in (
            _info,
            _pyramids,
            _stages,
            _needs,
            _detections,
            _assigned,
            towers_resume,
            queries_redecode,
            proposals_classify,
            _left_alone,
            _losses,
        ):
            try:
                subject.eval().requires_grad_(True).zero_grad()
                check(subject, batch, targets)
                expect(torch.equal(batch.images, pixels), "a look changes the batch's images")
            except AssertionError as error:
                raise AssertionError(f"{detector.info.kind}: {error}") from None


def _info(subject: Any, batch: Batch, targets: Targets) -> None:
    info: DetectorInfo = subject.info
    expect(
        bool(info.classes) and len(set(info.classes)) == len(info.classes),
        f"info.classes {info.classes}: names are needed, each once",
    )
    expect("neck" in info.channels, f"info.channels {dict(info.channels)} has no `neck`")
    own, body = {id(parameter) for parameter in subject.parameters()}, subject.backbone_parameters()
    expect(
        bool(body) and {id(parameter) for parameter in body} <= own,
        "backbone_parameters() are not some of its parameters",
    )


def _pyramids(subject: Any, batch: Batch, targets: Targets) -> None:
    info: DetectorInfo = subject.info
    output = look(subject, batch, pyramids=frozenset(info.channels))
    expect(
        set(info.channels) <= set(output.pyramids),
        f"pyramids {set(output.pyramids)}, but info.channels names {set(info.channels)}",
    )
    for name, width in info.channels.items():
        pyramid = output.pyramids[name]
        expect(
            pyramid.strides == info.strides,
            f"pyramid {name}: strides {pyramid.strides}, but info.strides is {info.strides}",
        )
        expect(torch.equal(pyramid.sizes, batch.sizes), f"pyramid {name}: its sizes are not those of the batch")
        for level, stride in zip(pyramid.levels, pyramid.strides, strict=True):
            cells = tuple(-(-side // stride) for side in batch.images.shape[-2:])
            wanted, got = (len(batch), width, *cells), tuple(level.shape)
            expect(got == wanted, f"pyramid {name}: the level of stride {stride} is {got}, and should be {wanted}")
        for anchors, level, stride in zip(
            pyramid.anchors or (), pyramid.levels, pyramid.strides, strict=pyramid.anchors is not None
        ):
            shape = (*level.shape[-2:], required(info.grid).anchors_per_cell, 4)
            expect(anchors.shape == shape, f"pyramid {name}: anchors {tuple(anchors.shape)}, and should be {shape}")
            off = (
                (centers(anchors) - cell_points(shape[0], shape[1], stride, 0.5, anchors.device)[:, :, None])
                .abs()
                .amax()
            )
            expect(
                float(off) <= REACH * stride,
                f"pyramid {name}: anchors of stride {stride} lie {float(off):.0f} pixels off their cells",
            )


def _stages(subject: Any, batch: Batch, targets: Targets) -> None:
    info: DetectorInfo = subject.info
    output = look(subject, batch, predictions=True)
    expect(bool(output.stages), "no stages, though predictions are needed")
    last = output.stages[-1]
    expect(
        last.logits.shape[-1] == len(info.classes),
        f"{last.logits.shape[-1]} class logits for {len(info.classes)} classes",
    )
    expect(
        last.activation == info.activation, f"activation {last.activation}, but info.activation is {info.activation}"
    )
    expect((last.quality is not None) == info.has_quality, "the quality logit and info.grid.quality disagree")
    bins = None if last.edges is None else last.edges.shape[-1]
    expect(bins == (info.edges and info.edges.bins), f"{bins} edge bins, but info.edges is {info.edges}")
    for index, stage in enumerate(output.stages):
        finite = stage.logits.isfinite().all() & stage.boxes.isfinite().all()
        expect(bool(finite), f"stage {index}: logits or boxes are not finite")
        expect(bool((stage.boxes[..., 2:] >= stage.boxes[..., :2]).all()), f"stage {index}: boxes are not x1 y1 x2 y2")
        if stage.layout is not None:
            shapes = tuple(tuple(level.shape[-2:]) for level in output.pyramids["neck"].levels)
            expect(stage.layout.shapes == shapes, f"stage {index}: layout {stage.layout.shapes} of levels {shapes}")
            expect(
                sum(stage.layout.counts) == stage.logits.shape[1],
                f"stage {index}: the layout has another number of predictions",
            )
            outside = stage.valid & ~stage.layout.valid(batch.sizes)
            expect(not bool(outside.any()), f"stage {index}: predictions in the padding are valid")


def _needs(subject: Any, batch: Batch, targets: Targets) -> None:
    """A met need ends the look: fewer modules run than for predictions."""
    info: DetectorInfo = subject.info
    needs: dict[str, dict[str, Any]] = {"the neck": {"pyramids": frozenset({"neck"})}}
    needs |= {name: {name: True} for name in ("queries", "proposals") if getattr(info, name) is not None}
    needs |= {"classify": {"classify": True}} if info.proposals is not None else {}
    needs |= {
        f"towers at {depth}": {"towers": frozenset({depth})}
        for depth in range(0 if info.towers is None else info.towers.depth + 1)
    }
    with _counted(subject) as calls:
        look(subject, batch, predictions=True)
        every = calls[0]
        for name, need in needs.items():
            calls[0] = 0
            output = look(subject, batch, **need)
            expect(calls[0] < every, f"a look that needs {name} alone runs on to the predictions")
            expect(not output.losses, "losses without targets")


@contextmanager
def _counted(subject: nn.Module) -> Iterator[list[int]]:
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    handles = [module.register_forward_hook(count) for module in subject.modules()]
    yield calls
    for handle in handles:
        handle.remove()


def _detections(subject: Any, batch: Batch, targets: Targets) -> None:
    stage = look(subject, batch, predictions=True).stages[-1]
    found = subject.detect(batch)
    expect(len(found) == len(batch), f"detect gives {len(found)} for {len(batch)} images")
    for image, ((height, width), one) in enumerate(zip(batch.sizes.tolist(), found, strict=True)):
        limit = one.boxes.new_tensor([width, height, width, height])
        expect(
            bool(((one.boxes >= 0) & (one.boxes <= limit)).all()), f"image {image}: detections beyond its valid size"
        )
        expect(bool((one.scores.diff() <= 0).all()), f"image {image}: detections are not the best first")
        expect(
            bool(((one.labels >= 0) & (one.labels < len(subject.info.classes))).all()),
            f"image {image}: labels out of range",
        )
        if len(one.boxes):  # the very best is its row's own class, and so in the stage with its box
            rows = stage.scores()[image].argmax(-1) == one.labels[0]
            apart = (stage.boxes[image].clamp(min=0).minimum(limit) - one.boxes[0]).abs().amax(-1)[rows]
            expect(
                bool((apart < 0.1).any()),
                f"image {image}: the best detection is no prediction of that class in the last stage",
            )


def _check_assignment(assignment: Assignment, targets: Targets, what: str) -> None:
    for image, (rows, boxes) in enumerate(zip(assignment.matched, targets.boxes, strict=True)):
        expect(int(rows.max()) < len(boxes), f"{what}: image {image} is matched to a target it hasn't got")
        expect(int(rows.min()) >= -2, f"{what}: image {image} has matches below -2")
    expect(float(assignment.num_positives) >= 1, f"{what}: num_positives is below 1")


def _assigned(subject: Any, batch: Batch, targets: Targets) -> None:
    """Positive anchors (of points: two strides about them) meet their boxes: the frame of targets is that of strides and images."""
    output = look(subject, batch, predictions=True)
    if output.assign is None:
        return
    layout, assignment = output.stages[0].layout, output.assign(targets)
    expect(layout is not None, "assign goes with a dense first stage, and it has no layout")
    assert layout is not None
    _check_assignment(assignment, targets, "assign")
    levels = zip(layout.split(assignment.matched), layout.shapes, layout.strides, strict=True)
    for index, (matched, (rows, columns), stride) in enumerate(levels):
        squares = (
            square_anchors(rows, columns, stride, 2.0, matched.device).expand(-1, -1, layout.anchors, -1) + stride / 2
        )
        anchors = output.pyramids["neck"].anchors
        seen = squares if anchors is None else anchors[index]
        for own, boxes in zip(matched, targets.boxes, strict=True):
            pair = torch.stack([seen[own >= 0], boxes[own[own >= 0]]])  # (2, P, 4)
            sides = (pair[..., 2:].amin(0) - pair[..., :2].amax(0)).clamp(min=0)
            share = sides.prod(-1) / (pair[..., 2:] - pair[..., :2]).prod(-1).amin(0)
            expect(bool((share > SHARED).all()), f"positives of stride {stride} lie far from their boxes")


def _left_alone(subject: Any, batch: Batch, targets: Targets) -> None:
    """Two looks agree, on bytes and on floats, and leave batch, mode and weights as they were."""
    state = copy.deepcopy(subject.state_dict())
    first = look(subject, batch, predictions=True).stages[-1]
    shares = replace(batch, images=batch.images.float() / 255)
    same_stage(look(subject, shares, predictions=True).stages[-1], first, "images in 0..1 against bytes")
    subject.detect(batch)
    expect(not subject.training, "a look changes the mode")
    after = subject.state_dict()
    expect(after.keys() == state.keys(), f"a look changes the state dict: {sorted(after.keys() ^ state.keys())[:3]}")
    expect(
        all(torch.equal(after[name], value) for name, value in state.items()),
        "a look in evaluation mode changes the weights",
    )


def _losses(subject: Any, batch: Batch, targets: Targets) -> None:
    subject.train()
    nothing = Targets(tuple(boxes[:0] for boxes in targets.boxes), tuple(labels[:0] for labels in targets.labels))
    first = Targets((targets.boxes[0], *nothing.boxes[1:]), (targets.labels[0], *nothing.labels[1:]))
    for what, given in (
        ("all images have objects", targets),
        ("one image has objects", first),
        ("no image has objects", nothing),
    ):
        subject.zero_grad()
        output = subject.observe(batch, given)
        odd = [name for name, term in output.losses.items() if term.shape != () or not bool(term.isfinite())]
        expect(bool(output.losses) and not odd, f"{what}: losses {odd or 'none'} are not finite scalars")
        assignment = output.stages[-1].assignment
        expect(assignment is not None, "targets were given, and the last stage has no assignment")
        assert assignment is not None
        _check_assignment(assignment, given, what)
        torch.stack(list(output.losses.values())).sum().backward()
        grads = [parameter.grad for parameter in subject.parameters() if parameter.grad is not None]
        expect(bool(grads) and all(bool(grad.isfinite().all()) for grad in grads), f"{what}: gradients are not finite")
    body = [parameter for parameter in subject.backbone_parameters() if parameter.requires_grad]
    reached = any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in body)
    expect(reached or not body, "the losses' gradient does not reach the backbone")
