"""What the adapters of transformers' DETR family share: frames of boxes, matching and criterion from the host's parts, final detections.

The host's boxes are cx cy w h in 0..1 of each image's valid area: its decoders scale reference points by the valid ratios, and its published
post-processing multiplies by the image's own size. (Its image processor scales ground truth to the padded size instead; that disagrees with
both as soon as a batch is padded, and is not followed here.)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert
from transformers.loss.loss_for_object_detection import ImageLoss

from detdistill.losses import mean_over_processes
from detdistill.types import Assignment, Detections, Need, Predictions, Targets


def extents(sizes: Tensor) -> Tensor:
    """Valid (height, width) (B, 2) to width, height, width, height (B, 1, 4), single precision."""
    return sizes.flip(-1).repeat(1, 2)[:, None].float()


def to_pixels(boxes: Tensor, sizes: Tensor) -> Tensor:
    """cx cy w h (B, Q, 4) in 0..1 of the valid area to xyxy in pixels of the padded batch."""
    return box_convert(boxes, "cxcywh", "xyxy") * extents(sizes)


def to_relative(boxes: Tensor, sizes: Tensor) -> Tensor:
    """The inverse of `to_pixels`."""
    return box_convert(boxes / extents(sizes), "xyxy", "cxcywh")


def check_need(need: Need, pyramids: frozenset[str], kind: str) -> None:
    """Raises ValueError where `need` asks for what a query detector with these pyramids hasn't got."""
    wrong = [f"pyramid {name!r}" for name in sorted(need.pyramids - pyramids)]
    wrong += ["towers"] * bool(need.towers) + ["proposals"] * (need.proposals or need.classify)
    if wrong:
        raise ValueError(f"{kind} has no {', '.join(wrong)}; it has the pyramids {', '.join(sorted(pyramids))}, stages and queries")


def freeze_norms(body: nn.Module) -> tuple[nn.Module, ...]:
    """Stops the affine parameters of a backbone's batch norms and returns these; whoever owns them keeps them in eval mode.

    The host swaps in its own frozen norm. On timm's BatchNormAct2d (MobileNet, EfficientNet, ...) that drops the activation inside.
    """
    norms = tuple(module for module in body.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    for norm in norms:
        norm.requires_grad_(False)
    return norms


class StageCriterion:
    """The host's one-to-one matching and losses on stages in our frame. Holds no parameters.

    host: transformers' set loss with its matcher. weights: coefficient of each of its terms `loss_ce`, `loss_bbox`, `loss_giou`.
    """

    NAMES: Mapping[str, str] = {"loss_ce": "classification", "loss_bbox": "box", "loss_giou": "giou"}

    def __init__(self, host: ImageLoss, weights: Mapping[str, float]):
        self.host, self.weights = host, weights

    def assign(self, stage: Predictions, sizes: Tensor, targets: Targets) -> Assignment:
        """Least-cost pairs of this stage's predictions and the ground truths. Predictions that aren't finite match nothing."""
        matched = torch.full_like(stage.valid, -1, dtype=torch.long)
        if _finite(stage):
            pairs = self.host.matcher(_outputs(stage, sizes), _labels(targets, sizes))
            for row, (predictions, truths) in zip(matched, pairs, strict=True):
                row[predictions.to(row.device)] = truths.to(row.device)
        positives = (matched >= 0).sum(1).clamp(min=1).sum().float()
        return Assignment(matched, stage.valid, mean_over_processes(positives))

    def losses(self, stages: Sequence[Predictions], sizes: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Weighted terms of every stage, under the assignment each carries; their sum is the host's objective.

        The last stage's are `classification`, `box`, `giou`, those of an earlier stage i end in `_i`. Normalised by the number of ground
        truths, averaged over processes (the host divides by their number twice), at least 1. Not a number where predictions aren't finite.
        """
        count = mean_over_processes(torch.tensor(float(sum(len(labels) for labels in targets.labels)), device=sizes.device))
        terms: dict[str, Tensor] = {}
        for index, stage in enumerate(stages):
            last = index == len(stages) - 1
            for name, value in self._stage(stage, sizes, targets, count).items():
                terms[self.NAMES[name] + ("" if last else f"_{index}")] = self.weights[name] * value
        return terms

    def _stage(self, stage: Predictions, sizes: Tensor, targets: Targets, count: Tensor) -> dict[str, Tensor]:
        if stage.assignment is None:
            raise ValueError("a stage without an assignment has no losses; assign it first")
        if not _finite(stage):  # the host would stop inside its IoU with the tensor's contents; the engine tells the step and the files
            return {name: stage.logits.sum() * float("nan") for name in self.NAMES}
        outputs, labels = _outputs(stage, sizes), _labels(targets, sizes)
        rows = [row.ge(0).nonzero()[:, 0] for row in stage.assignment.matched]
        pairs = [(row, matched[row]) for row, matched in zip(rows, stage.assignment.matched, strict=True)]
        classification = self.host.get_loss("labels", outputs, labels, pairs, count)
        return classification | self.host.get_loss("boxes", outputs, labels, pairs, count)


def _finite(stage: Predictions) -> bool:
    return bool(stage.boxes.isfinite().all() & stage.logits.isfinite().all())


def _outputs(stage: Predictions, sizes: Tensor) -> dict[str, Tensor]:
    return {"logits": stage.logits, "pred_boxes": to_relative(stage.boxes, sizes)}


def _labels(targets: Targets, sizes: Tensor) -> list[dict[str, Any]]:
    """Ground truth as the host wants it: cx cy w h in 0..1 of the valid area, one mapping an image."""
    relative = (to_relative(boxes[None], size[None])[0] for boxes, size in zip(targets.boxes, sizes, strict=True))
    return [{"class_labels": labels, "boxes": boxes} for boxes, labels in zip(relative, targets.labels, strict=True)]


def top_detections(stage: Predictions, sizes: Tensor, count: int, threshold: float) -> tuple[Detections, ...]:
    """The `count` best of all queries x classes (a query may answer for several classes), those above `threshold`, clipped, best first."""
    scores = stage.scores()
    best, index = scores.flatten(1).topk(min(count, scores[0].numel()), dim=1)
    queries, labels = index // scores.shape[-1], index % scores.shape[-1]
    boxes = stage.boxes.clamp(min=0).minimum(extents(sizes)).gather(1, queries[..., None].expand(-1, -1, 4))
    kept = best > threshold
    return tuple(Detections(box[keep], score[keep], label[keep]) for box, score, label, keep in zip(boxes, best, labels, kept, strict=True))
