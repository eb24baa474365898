"""Continuations: equal to the plain look, and open to gradients while the detector is frozen."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detdistill.testing.expect import expect, look, same, same_stage
from detdistill.types import Batch, DetectorInfo, Predictions, Pyramid, QuerySet, Targets, TowerState, required


def towers_resume(subject: Any, batch: Batch, targets: Targets) -> None:
    info: DetectorInfo = subject.info
    if info.towers is None:
        return
    depths = frozenset(range(info.towers.depth + 1))
    output = look(subject, batch, towers=depths, predictions=True)
    towers = output.towers
    expect(towers is not None and set(towers.states) == depths, f"towers keep other states than {sorted(depths)}")
    assert towers is not None
    subject.requires_grad_(False)
    for depth, state in towers.states.items():
        levels = (*state.classification, *state.regression)
        width = info.towers.channels if depth else info.channels["neck"]
        expect(all(level.shape[1] == width for level in levels), f"state {depth} is not {width} wide")
        expect(
            not depth or any(bool((level < 0).any()) for level in levels), f"state {depth} is kept after its activation"
        )
        leaves = [level.clone().requires_grad_() for level in levels]
        resumed = towers.resume(TowerState(depth, tuple(leaves[: len(leaves) // 2]), tuple(leaves[len(leaves) // 2 :])))
        same_stage(resumed, output.stages[-1], f"resume from depth {depth}")
        _open(resumed, leaves[:: len(leaves) // 2], f"resume from depth {depth}")


def _open(stage: Predictions, leaves: Sequence[Tensor], what: str) -> None:
    """Gradient flows from a continuation into what it was given."""
    expect(stage.logits.requires_grad, f"{what}: no gradient flows through the frozen detector")
    (stage.logits.square().sum() + stage.boxes.square().sum()).backward()
    expect(
        all(leaf.grad is not None and bool(leaf.grad.any()) for leaf in leaves),
        f"{what}: no gradient reaches what it was given",
    )


def queries_redecode(subject: Any, batch: Batch, targets: Targets) -> None:
    """The own queries again, whole and by the parts in `info.queries.parts` alone; and as many random ones as asked for."""
    info: DetectorInfo = subject.info
    if info.queries is None:
        return
    output = look(subject, batch, queries=True, predictions=True)
    queries = output.queries
    expect(queries is not None, "no queries, though they are needed")
    assert queries is not None
    leaves = _parts(queries.own, info, "queries.own")
    subject.requires_grad_(False)
    for own in (queries.own, QuerySet(**leaves)):
        again = queries.redecode(own)
        for index, (one, plain) in enumerate(zip(again, output.stages, strict=True)):
            same_stage(one, plain, f"redecode, stage {index}")
    _open(again[-1], list(leaves.values()), "redecode")
    drawn = [queries.sample(5, torch.Generator().manual_seed(1)) for _ in range(2)]
    first, second = (_parts(one, info, "queries.sample") for one in drawn)
    for name, values in first.items():
        same(values, second[name], f"queries.sample with equal generators, {name}")
    shape = tuple(queries.redecode(drawn[0])[-1].boxes.shape)
    expect(shape == (len(batch), 5, 4), f"five sampled queries give boxes {shape}")


def _parts(queries: QuerySet, info: DetectorInfo, what: str) -> dict[str, Tensor]:
    """Leaves of the parts that the decoder reads."""
    parts = {name: getattr(queries, name) for name in sorted(required(info.queries).parts)}
    lacking = [name for name, values in parts.items() if values is None]
    expect(
        bool(parts) and not lacking,
        f"{what} has no {', '.join(lacking) or 'part'}, but info.queries.parts is {sorted(parts)}",
    )
    return {name: values.detach().clone().requires_grad_() for name, values in parts.items()}


def proposals_classify(subject: Any, batch: Batch, targets: Targets) -> None:
    if subject.info.proposals is None:
        return
    output = look(subject, batch, proposals=True, predictions=True)
    proposals, neck = output.proposals, output.pyramids["neck"]
    expect(proposals is not None, "no proposals, though they are needed")
    assert proposals is not None
    plain, subject = output.stages[-1], subject.requires_grad_(False)
    levels = tuple(level.clone().requires_grad_() for level in neck.levels)
    for what, pyramid in (("classify", None), ("classify on a pyramid", Pyramid(levels, neck.strides, neck.sizes))):
        again = proposals.classify(proposals.boxes, pyramid=pyramid)
        rows = again.valid & proposals.valid
        expect(bool(rows.any()), f"{what}: no row is valid")
        for name in ("logits", "boxes", "background"):
            same(getattr(again, name)[rows], getattr(plain, name)[rows], f"{what}, {name}")
    _open(again, levels[:1], "classify on a pyramid")
    alone = look(subject, batch, classify=True).proposals
    expect(alone is not None, "no proposals.classify, though it is needed")
    assert alone is not None
    again = alone.classify(proposals.boxes)
    same(again.logits[rows], plain.logits[rows], "classify alone, logits")
