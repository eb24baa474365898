"""The losses of transformers, computed on stages in our frame and under any assignment."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.loss.loss_deformable_detr import DeformableDetrImageLoss

from detdistill.detectors.queries.stages import merge_terms
from detdistill.distributed import mean_over_processes
from detdistill.geometry import to_relative
from detdistill.types import Predictions, Targets, required

NAMES: Mapping[str, str] = {
    "loss_ce": "classification",
    "loss_vfl": "classification",
    "loss_bbox": "box",
    "loss_giou": "giou",
}
"""Our names of the host's loss terms. Other terms keep their names without `loss_`."""


class HostLoss(Protocol):
    """A set loss of transformers, such as `ImageLoss` or `RTDetrLoss`."""

    def get_loss(self, loss: str, outputs: Any, targets: Any, indices: Any, num_boxes: Any, /) -> dict[str, Tensor]: ...


class StageCriterion:
    """Computes a host's loss terms for each stage under its assignment. Holds no parameters.

    host: the set loss of transformers. Its matcher is not used.
    weights: the coefficient of each of the host's terms, such as `loss_ce`. Terms without a coefficient are dropped.
    parts: the names of the losses that are computed.
    """

    def __init__(self, host: HostLoss, weights: Mapping[str, float], parts: Sequence[str] = ("labels", "boxes")):
        self.host = host
        self.weights = weights
        self.parts = parts

    def __call__(self, stages: Sequence[Predictions], frame: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Weighted terms of every stage under the assignment it carries. Their sum is the host's objective.

        frame (B, 2): (height, width) that the host's boxes are relative to. The terms of the last stage are
        `classification`, `box` and `giou`; those of an earlier stage i end in `_i`. The terms are divided by the number
        of ground truths, averaged over processes, at least 1. (The host's ImageLoss divides by the number of processes
        twice, its RTDetrLoss never.) Terms are NaN if predictions are not finite.
        """
        count = object_count(targets, frame)
        labels = host_labels(targets, frame)
        terms = []
        for stage in stages:
            outputs = {"logits": stage.logits, "pred_boxes": to_relative(stage.boxes, frame)}
            terms.append(self.stage(outputs, stage, labels, count))
        return merge_terms(terms)

    def stage(
        self, outputs: dict[str, Tensor], stage: Predictions, labels: list[dict[str, Any]], count: Tensor
    ) -> dict[str, Tensor]:
        """Weighted terms of one stage.

        outputs: the input of the host's losses. labels: result of `host_labels`. count (): divides the terms.
        """
        if not (stage.boxes.isfinite().all() and stage.logits.isfinite().all()):
            # The host's IoU would raise an error that prints whole tensors. With NaN terms, the engine reports the step
            # and the image files.
            return {NAMES[name]: stage.logits.sum() * float("nan") for name in self.weights if name in NAMES}
        pairs = []
        for matched in required(stage.assignment).matched:
            rows = matched.ge(0).nonzero()[:, 0]
            pairs.append((rows, matched[rows]))
        host_terms: dict[str, Tensor] = {}
        for part in self.parts:
            host_terms |= self.host.get_loss(part, outputs, labels, pairs, count)
        return {
            NAMES.get(name, name.removeprefix("loss_")): self.weights[name] * term
            for name, term in host_terms.items()
            if name in self.weights
        }


def detr_weights(config: Any, class_weight: float) -> dict[str, float]:
    """The coefficients of DETR and its successors.

    class_weight: the published one. In the host it is 1, whatever its config contains.
    """
    return {
        "loss_ce": class_weight,
        "loss_bbox": config.bbox_loss_coefficient,
        "loss_giou": config.giou_loss_coefficient,
    }


def focal_criterion(config: Any, classes: int, class_weight: float) -> StageCriterion:
    """The criterion of Conditional, Deformable and DAB-DETR: focal loss, L1 and GIoU.

    classes: their number. class_weight: see `detr_weights`.
    """
    host: Any = DeformableDetrImageLoss(None, classes, config.focal_alpha, [])
    return StageCriterion(host, detr_weights(config, class_weight))


def object_count(targets: Targets, like: Tensor) -> Tensor:
    """The number of ground truths, averaged over processes, at least 1; shape (), on the device of `like`."""
    total = sum(len(labels) for labels in targets.labels)
    return mean_over_processes(torch.tensor(float(total), device=like.device))


def host_labels(targets: Targets, frame: Tensor) -> list[dict[str, Any]]:
    """Ground truth in the form of transformers: one dict per image, boxes cx cy w h in 0..1 of the frame (B, 2)."""
    labels = []
    for image_boxes, image_labels, size in zip(targets.boxes, targets.labels, frame, strict=True):
        relative = to_relative(image_boxes[None], size[None])[0]
        labels.append({"class_labels": image_labels, "boxes": relative})
    return labels
