"""Checks of what `observe` and `detect` return: maps, predictions, detections and assignments."""

from typing import Any

import torch
from torch import Tensor

from detdistill.geometry import cell_points, centers, square_anchors
from detdistill.testing.expect import expect, observe
from detdistill.types import Assignment, Batch, DetectorInfo, Predictions, Pyramid, Targets, required

MAX_ANCHOR_OFFSET = 1.5  # strides; some hosts center anchors on the cell's corner, and use other steps on coarse levels
MIN_OVERLAP = 0.1  # of a positive anchor with its box, as a share of the smaller one
MAX_BOX_DIFFERENCE = 0.1  # pixels between the best detection and the prediction that it comes from


def check_pyramids(detector: Any, batch: Batch, targets: Targets) -> None:
    """Every pyramid of `info.channels` exists, with the declared strides and widths, and levels of the right size."""
    info: DetectorInfo = detector.info
    output = observe(detector, batch, pyramids=frozenset(info.channels))
    names = set(info.channels)
    problem = f"output.pyramids has {sorted(output.pyramids)}, but info.channels names {sorted(names)}"
    expect(names <= set(output.pyramids), problem, "DetectorOutput")
    for name in info.channels:
        pyramid = output.pyramids[name]
        problem = f"pyramid {name!r} has the strides {pyramid.strides}, but info.strides is {info.strides}"
        expect(pyramid.strides == info.strides, problem, "DetectorInfo")
        problem = f"pyramid {name!r}: its sizes differ from batch.sizes, the valid (height, width) of each image"
        expect(torch.equal(pyramid.sizes, batch.sizes), problem, "Pyramid")
        for level, stride in zip(pyramid.levels, pyramid.strides, strict=True):
            cells = tuple(-(-side // stride) for side in batch.images.shape[-2:])
            shape, expected = tuple(level.shape), (len(batch), info.width(name, stride), *cells)
            problem = f"pyramid {name!r}: the level of stride {stride} has the shape {shape}, expected {expected}"
            expect(shape == expected, problem, "Pyramid")
        _check_anchors(name, pyramid, info)


def _check_anchors(name: str, pyramid: Pyramid, info: DetectorInfo) -> None:
    """Anchors, if there are any, have the right shape and lie near their cells."""
    if pyramid.anchors is None:
        return
    for anchors, level, stride in zip(pyramid.anchors, pyramid.levels, pyramid.strides, strict=True):
        rows, columns = level.shape[-2:]
        where = f"pyramid {name!r}: the anchors of stride {stride}"
        expect(info.grid is not None, f"{where} exist, but info.grid is None", "GridInfo")
        shape, expected = tuple(anchors.shape), (rows, columns, required(info.grid).anchors_per_cell, 4)
        expect(shape == expected, f"{where} have the shape {shape}, expected {expected}", "Pyramid")
        cells = cell_points(rows, columns, stride, 0.5, anchors.device)[:, :, None]
        offset = float((centers(anchors) - cells).abs().amax())
        limit = MAX_ANCHOR_OFFSET * stride
        problem = f"{where} lie up to {offset:.0f} pixels from their cells, expected at most {limit:.0f}"
        expect(offset <= limit, problem, "Pyramid")


def check_predictions(detector: Any, batch: Batch, targets: Targets) -> None:
    """The last stage is what `info` declares, and every stage has finite values, ordered boxes and a fitting layout."""
    info: DetectorInfo = detector.info
    output = observe(detector, batch, predictions=True)
    expect(bool(output.stages), "output.stages is empty, although Need.predictions asked for them", "DetectorOutput")
    last = output.stages[-1]
    columns = last.logits.shape[-1]
    problem = f"the last stage has {columns} class logits, but info.classes has {len(info.classes)} classes"
    expect(columns == len(info.classes), problem, "Predictions")
    problem = f"the last stage has the activation {last.activation!r}, but info.activation is {info.activation!r}"
    expect(last.activation == info.activation, problem, "DetectorInfo")
    has_quality = last.quality is not None
    problem = (
        f"the last stage {'has' if has_quality else 'has no'} quality logits, but info.grid.quality is "
        f"{info.has_quality}"
    )
    expect(has_quality == info.has_quality, problem, "GridInfo")
    bins = None if last.edges is None else last.edges.shape[-1]
    problem = f"the last stage has {bins or 'no'} edge bins, but info.edges is {info.edges}"
    expect(bins == (info.edges and info.edges.bins), problem, "EdgeInfo")
    shapes = tuple((level.shape[-2], level.shape[-1]) for level in output.pyramids["neck"].levels)
    for index, stage in enumerate(output.stages):
        _check_stage(f"stage {index}", stage, batch, shapes)


def _check_stage(name: str, stage: Predictions, batch: Batch, shapes: tuple[tuple[int, int], ...]) -> None:
    """The values and the layout of one stage. shapes: (rows, columns) of the neck's levels."""
    is_finite = bool(stage.logits.isfinite().all() & stage.boxes.isfinite().all())
    expect(is_finite, f"{name}: logits or boxes are not finite", "Predictions")
    is_ordered = bool((stage.boxes[..., 2:] >= stage.boxes[..., :2]).all())
    problem = f"{name}: boxes are not x1 y1 x2 y2: some have x2 < x1 or y2 < y1"
    expect(is_ordered, problem, "Predictions")
    if stage.layout is None:
        return
    problem = f"{name}: layout.shapes is {stage.layout.shapes}, but the neck's levels have the shapes {shapes}"
    expect(stage.layout.shapes == shapes, problem, "Layout")
    count, expected = stage.logits.shape[1], sum(stage.layout.counts)
    expect(count == expected, f"{name}: has {count} predictions, but its layout has {expected}", "Layout")
    in_padding = stage.valid & ~stage.layout.valid(batch.sizes)
    problem = f"{name}: {int(in_padding.sum())} predictions in the padding are valid, expected none"
    expect(not bool(in_padding.any()), problem, "Layout")


def check_detect(detector: Any, batch: Batch, targets: Targets) -> None:
    """Detections are sorted, inside the image, and the best one comes from the last stage."""
    stage = observe(detector, batch, predictions=True).stages[-1]
    detections = detector.detect(batch)
    problem = f"detect returned {len(detections)} Detections for {len(batch)} images, expected one per image"
    expect(len(detections) == len(batch), problem, "Detector")
    for image, ((height, width), results) in enumerate(zip(batch.sizes.tolist(), detections, strict=True)):
        limit = results.boxes.new_tensor([width, height, width, height])
        is_inside = bool(((results.boxes >= 0) & (results.boxes <= limit)).all())
        problem = f"detect, image {image}: boxes lie outside its valid size, {height} x {width}; clip them"
        expect(is_inside, problem, "Detector")
        is_sorted = bool((results.scores.diff() <= 0).all())
        expect(is_sorted, f"detect, image {image}: scores do not fall; sort detections best first", "Detections")
        num_classes = len(detector.info.classes)
        is_class = bool(((results.labels >= 0) & (results.labels < num_classes)).all())
        problem = f"detect, image {image}: labels are not in 0..{num_classes - 1}, the order of info.classes"
        expect(is_class, problem, "Detections")
        if len(results.boxes):
            _check_best_detection(image, results.boxes[0], results.labels[0], stage, limit)


def _check_best_detection(image: int, box: Tensor, label: Tensor, stage: Predictions, limit: Tensor) -> None:
    """A prediction of the last stage whose best class is `label` has the box of the best detection."""
    is_label = stage.scores()[image].argmax(-1) == label
    differences = (stage.boxes[image].clamp(min=0).minimum(limit) - box).abs().amax(-1)[is_label]
    problem = (
        f"detect, image {image}: the best detection is no prediction of that class in the last stage; boxes of stages "
        "and of detections must be x1 y1 x2 y2 in pixels of the padded batch"
    )
    expect(bool((differences < MAX_BOX_DIFFERENCE).any()), problem, "Predictions")


def check_assignment(assignment: Assignment, targets: Targets, name: str) -> None:
    """Matches are indices of existing targets, -1 or -2, and num_positives is at least 1. name: for messages."""
    for image, (matches, boxes) in enumerate(zip(assignment.matched, targets.boxes, strict=True)):
        problem = f"{name}: image {image} has {len(boxes)} targets, but matched contains {int(matches.max())}"
        expect(int(matches.max()) < len(boxes), problem, "Assignment")
        problem = f"{name}: image {image} has matches below -2; use -1 for background and -2 for ambiguous predictions"
        expect(int(matches.min()) >= -2, problem, "Assignment")
    count = float(assignment.num_positives)
    expect(count >= 1, f"{name}: num_positives is {count:g}, expected at least 1", "Assignment")


def check_assign(detector: Any, batch: Batch, targets: Targets) -> None:
    """Positive anchors overlap their boxes, so targets are in the frame of the strides and images.

    For a detector without anchors, squares of two strides at its points stand for them.
    """
    output = observe(detector, batch, predictions=True)
    if output.assign is None:
        return
    assignment = output.assign(targets)
    layout = output.stages[0].layout
    expect(layout is not None, "output.assign exists, but the first stage has no layout", "DetectorOutput")
    assert layout is not None
    check_assignment(assignment, targets, "output.assign")
    anchors_of_levels = output.pyramids["neck"].anchors
    levels = zip(layout.split(assignment.matched), layout.shapes, layout.strides, strict=True)
    for index, (level_matched, (rows, columns), stride) in enumerate(levels):
        if anchors_of_levels is None:
            squares = square_anchors(rows, columns, stride, 2.0, level_matched.device)
            anchors = squares.expand(-1, -1, layout.anchors, -1) + stride / 2
        else:
            anchors = anchors_of_levels[index]
        for matches, boxes in zip(level_matched, targets.boxes, strict=True):
            shares = _overlap_shares(anchors[matches >= 0], boxes[matches[matches >= 0]])
            problem = (
                f"output.assign: positives of stride {stride} lie far from their boxes; targets are in pixels of the "
                "padded batch"
            )
            expect(bool((shares > MIN_OVERLAP).all()), problem, "Targets")


def _overlap_shares(first: Tensor, second: Tensor) -> Tensor:
    """(P,): the intersection of each pair of boxes (P, 4), divided by the area of the smaller box."""
    pair = torch.stack([first, second])  # (2, P, 4)
    sides = (pair[..., 2:].amin(0) - pair[..., :2].amax(0)).clamp(min=0)
    return sides.prod(-1) / (pair[..., 2:] - pair[..., :2]).prod(-1).amin(0)
