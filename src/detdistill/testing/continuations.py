"""Checks of the continuations of a detector: towers.resume, queries.redecode and proposals.classify.

A continuation must give the same predictions as `observe`, and let gradients through while the detector is frozen.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detdistill.testing.expect import expect, expect_close, expect_same_predictions, observe
from detdistill.types import Batch, DetectorInfo, Predictions, Pyramid, QuerySet, Targets, TowerState, required


def check_resume(detector: Any, batch: Batch, targets: Targets) -> None:
    """Tower states exist at every depth, are kept before the activation, and resume to the predictions of `observe`."""
    info: DetectorInfo = detector.info
    if info.towers is None:
        return
    depths = frozenset(range(info.towers.depth + 1))
    output = observe(detector, batch, towers=depths, predictions=True)
    towers = output.towers
    expect(towers is not None, "observe returned no towers, although Need.towers asked for them", "Need")
    assert towers is not None
    problem = f"output.towers.states has the depths {sorted(towers.states)}, expected {sorted(depths)}"
    expect(set(towers.states) == depths, problem, "Towers")
    detector.requires_grad_(False)
    for depth, state in towers.states.items():
        levels = (*state.classification, *state.regression)
        width = info.towers.channels if depth else info.width()
        field = "info.towers.channels" if depth else "info.channels['neck']"
        widths = sorted({level.shape[1] for level in levels})
        problem = f"the tower state of depth {depth} has {widths} channels, expected {width} ({field})"
        expect(widths == [width], problem, "TowerInfo")
        has_negative = any(bool((level < 0).any()) for level in levels)
        problem = f"the tower state of depth {depth} has no negative value: keep it before the activation, not after it"
        expect(not depth or has_negative, problem, "TowerState")
        leaves = [level.clone().requires_grad_() for level in levels]
        half = len(leaves) // 2
        resumed = towers.resume(TowerState(depth, tuple(leaves[:half]), tuple(leaves[half:])))
        name = f"towers.resume from depth {depth}"
        expect_same_predictions(resumed, output.stages[-1], name, "Towers")
        _expect_gradient(resumed, leaves[::half], name, "Towers")


def _expect_gradient(stage: Predictions, leaves: Sequence[Tensor], name: str, see: str) -> None:
    """Raises CheckError unless the gradient of the predictions reaches every tensor of `leaves`."""
    problem = f"{name}: no gradient flows through the frozen detector; run it without no_grad and detach nothing"
    expect(stage.logits.requires_grad, problem, see)
    (stage.logits.square().sum() + stage.boxes.square().sum()).backward()
    reached = all(leaf.grad is not None and bool(leaf.grad.any()) for leaf in leaves)
    expect(reached, f"{name}: no gradient reaches its input", see)


def check_redecode(detector: Any, batch: Batch, targets: Targets) -> None:
    """The detector's own queries decode again to its predictions; sampled queries are reproducible.

    The own queries are decoded twice: whole, and reduced to the parts in `info.queries.parts`.
    """
    info: DetectorInfo = detector.info
    if info.queries is None:
        return
    output = observe(detector, batch, queries=True, predictions=True)
    queries = output.queries
    expect(queries is not None, "observe returned no queries, although Need.queries asked for them", "Need")
    assert queries is not None
    leaves = _query_parts(queries.own, info, "queries.own")
    detector.requires_grad_(False)
    for own in (queries.own, QuerySet(**leaves)):
        redecoded = queries.redecode(own)
        for index, (actual, expected) in enumerate(zip(redecoded, output.stages, strict=True)):
            name = f"queries.redecode(queries.own), stage {index}"
            expect_same_predictions(actual, expected, name, "Queries")
    _expect_gradient(redecoded[-1], list(leaves.values()), "queries.redecode", "Queries")
    samples = [queries.sample(5, torch.Generator().manual_seed(1)) for _ in range(2)]
    first = _query_parts(samples[0], info, "queries.sample")
    second = _query_parts(samples[1], info, "queries.sample")
    for part, values in first.items():
        expect_close(values, second[part], f"queries.sample with equal generators: {part}", "Queries")
    shape, expected_shape = tuple(queries.redecode(samples[0])[-1].boxes.shape), (len(batch), 5, 4)
    problem = f"queries.redecode(queries.sample(5)) gives boxes {shape}, expected {expected_shape}"
    expect(shape == expected_shape, problem, "Queries")


def _query_parts(queries: QuerySet, info: DetectorInfo, name: str) -> dict[str, Tensor]:
    """Copies, as leaves, of the query parts that the decoder reads. name: of the queries, for messages."""
    parts = {part: getattr(queries, part) for part in sorted(required(info.queries).parts)}
    expect(bool(parts), "info.queries.parts is empty, expected the parts that the decoder reads", "QueryInfo")
    missing = [part for part, values in parts.items() if values is None]
    problem = f"{name} has no {', '.join(missing)}, but info.queries.parts is {sorted(parts)}"
    expect(not missing, problem, "QueryInfo")
    return {part: values.detach().clone().requires_grad_() for part, values in parts.items()}


def _rows(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values[rows]


def check_classify(detector: Any, batch: Batch, targets: Targets) -> None:
    """The second stage on the detector's proposals gives its predictions, on its own pyramid and on a copy of it."""
    if detector.info.proposals is None:
        return
    output = observe(detector, batch, proposals=True, predictions=True)
    proposals, neck = output.proposals, output.pyramids["neck"]
    expect(proposals is not None, "observe returned no proposals, although Need.proposals asked for them", "Need")
    assert proposals is not None
    stage = output.stages[-1]
    detector.requires_grad_(False)
    levels = tuple(level.clone().requires_grad_() for level in neck.levels)
    copied_pyramid = Pyramid(levels, neck.strides, neck.sizes)
    for name, pyramid in (("proposals.classify", None), ("proposals.classify with a pyramid", copied_pyramid)):
        classified = proposals.classify(proposals.boxes, pyramid=pyramid)
        rows = classified.valid & proposals.valid
        expect(bool(rows.any()), f"{name}: no prediction is valid, although the proposals are", "Proposals")
        for field in ("logits", "boxes", "background"):
            actual, expected = _rows(getattr(classified, field), rows), _rows(getattr(stage, field), rows)
            expect_close(actual, expected, f"{name}: {field}", "Proposals")
    _expect_gradient(classified, levels[:1], "proposals.classify with a pyramid", "Proposals")
    classify_only = observe(detector, batch, classify=True).proposals
    expect(classify_only is not None, "observe returned no proposals, although Need.classify asked for them", "Need")
    assert classify_only is not None
    actual = classify_only.classify(proposals.boxes).logits[rows]
    expect_close(actual, stage.logits[rows], "proposals.classify after Need(classify=True): logits", "Proposals")
