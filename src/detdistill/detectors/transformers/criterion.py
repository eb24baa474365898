"""The host library's losses on stages in our frame, under any assignment."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from detdistill.detectors.queries.detector import by_stage
from detdistill.detectors.queries.frames import to_relative
from detdistill.distributed import mean_over_processes
from detdistill.types import Predictions, Targets, required

NAMES: Mapping[str, str] = {
    "loss_ce": "classification",
    "loss_vfl": "classification",
    "loss_bbox": "box",
    "loss_giou": "giou",
}


class HostLoss(Protocol):
    """transformers' set losses: `ImageLoss`, `RTDetrLoss` and theirs."""

    def get_loss(self, loss: str, outputs: Any, targets: Any, indices: Any, num_boxes: Any, /) -> dict[str, Tensor]: ...


class StageCriterion:
    """Holds no parameters. host: transformers' set loss, whose matcher is not used. weights: coefficient of each of its terms, such as
    `loss_ce`; terms that aren't there are left out. parts: the losses asked of it."""

    def __init__(self, host: HostLoss, weights: Mapping[str, float], parts: Sequence[str] = ("labels", "boxes")):
        self.host, self.weights, self.parts = host, weights, parts

    def __call__(self, stages: Sequence[Predictions], frame: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Weighted terms of every stage under the assignment each carries; their sum is the host's objective. frame (B, 2): what the host's
        boxes are relative to.

        The last stage's are `classification`, `box`, `giou`, those of an earlier stage i end in `_i`. Normalised by the number of ground
        truths, averaged over processes (the host's ImageLoss divides by their number twice, its RTDetrLoss never), at least 1. Not a number
        where predictions aren't finite.
        """
        count, labels = object_count(targets, frame), host_labels(targets, frame)
        outputs = ({"logits": stage.logits, "pred_boxes": to_relative(stage.boxes, frame)} for stage in stages)
        return by_stage([self.stage(said, stage, labels, count) for said, stage in zip(outputs, stages, strict=True)])

    def stage(
        self, outputs: dict[str, Tensor], stage: Predictions, labels: list[dict[str, Any]], count: Tensor
    ) -> dict[str, Tensor]:
        """Weighted terms of one stage. outputs: as the host's losses read them; count: what they are divided by."""
        if not (stage.boxes.isfinite().all() and stage.logits.isfinite().all()):
            # The host would stop inside its IoU with the tensor's contents; the engine tells the step and the files.
            return {NAMES[name]: stage.logits.sum() * float("nan") for name in self.weights if name in NAMES}
        matched = required(stage.assignment).matched
        rows = [row.ge(0).nonzero()[:, 0] for row in matched]
        pairs = [(row, own[row]) for row, own in zip(rows, matched, strict=True)]
        found: dict[str, Tensor] = {}
        for part in self.parts:
            found |= self.host.get_loss(part, outputs, labels, pairs, count)
        return {
            NAMES.get(name, name.removeprefix("loss_")): self.weights[name] * term
            for name, term in found.items()
            if name in self.weights
        }


def object_count(targets: Targets, like: Tensor) -> Tensor:
    """(): number of ground truths, averaged over processes, at least 1."""
    return mean_over_processes(torch.tensor(float(sum(len(labels) for labels in targets.labels)), device=like.device))


def host_labels(targets: Targets, frame: Tensor) -> list[dict[str, Any]]:
    """Ground truth as the host wants it: cx cy w h in 0..1 of the frame (B, 2), one mapping an image."""
    relative = (to_relative(boxes[None], size[None])[0] for boxes, size in zip(targets.boxes, frame, strict=True))
    return [{"class_labels": labels, "boxes": boxes} for boxes, labels in zip(relative, targets.labels, strict=True)]
