"""One-to-one matching of ground truths and predictions at least cost.

All stages and images of a batch are matched at once, with one transfer to the CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detdistill.distributed import mean_over_processes
from detdistill.geometry import pair_all, to_pixels, to_relative
from detdistill.losses import pairwise_giou
from detdistill.types import Assignment, Predictions, Targets

EPSILON = 1e-8  # inside the logarithms, as published


@dataclass(frozen=True)
class Matcher:
    """Matches by the cost `classification * class_cost + box * L1 - giou * GIoU`. DETR, arXiv:2005.12872.

    The class cost is -p of the label with softmax. With sigmoids it is the focal cost of Deformable DETR,
    arXiv:2010.04159, with alpha and gamma. The L1 distance is of cx cy w h in 0..1 of the frame, or of x y x y in
    0..1 if `corners` is True.
    """

    classification: float = 1.0
    box: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0
    corners: bool = False

    @torch.no_grad()
    def __call__(self, stages: Sequence[Predictions], frame: Tensor, targets: Targets) -> tuple[Assignment, ...]:
        """One assignment per stage. All stages must have the same number of queries.

        frame (B, 2): (height, width) that relative boxes refer to. A stage with a box or logit that is NaN or infinite
        matches nothing.
        """
        counts = [len(labels) for labels in targets.labels]
        valid = torch.stack([stage.valid for stage in stages])  # (L, B, Q)
        matched = torch.full_like(valid, -1, dtype=torch.long)
        if sum(counts):
            costs = self.costs(stages, frame, targets).flatten(0, 1)  # (L, B, Q, G) to (L B, Q, G)
            pairs = pair_all(costs, counts * len(stages)).view_as(matched)
            finite = torch.stack([stage.boxes.isfinite().all() & stage.logits.isfinite().all() for stage in stages])
            matched = torch.where(finite[:, None, None], pairs, matched)
        positives = (matched >= 0).sum(2).clamp(min=1).sum(1).float()  # (L,)
        return tuple(
            Assignment(stage_matched, stage_valid, mean_over_processes(count))
            for stage_matched, stage_valid, count in zip(matched, valid, positives, strict=True)
        )

    def costs(self, stages: Sequence[Predictions], frame: Tensor, targets: Targets) -> Tensor:
        """The cost of every pair, (L, B, Q, G), where G is the largest number of ground truths of an image.

        Columns beyond the ground truths of an image are padding.
        """
        target_boxes = pad_sequence(list(targets.boxes), batch_first=True, padding_value=1.0)  # (B, G, 4)
        labels = pad_sequence(list(targets.labels), batch_first=True)  # (B, G)
        boxes = to_relative(torch.stack([stage.boxes for stage in stages]).float(), frame)  # (L, B, Q, 4)
        target_boxes = to_relative(target_boxes.float(), frame)
        scores = torch.stack([stage.scores() for stage in stages]).float()  # (L, B, Q, K)
        columns = labels[None, :, None].expand(len(scores), -1, scores.shape[2], -1)
        label_scores = scores.gather(-1, columns)  # (L, B, Q, G)
        target_boxes = target_boxes.expand(len(boxes), -1, -1, -1)  # (L, B, G, 4)
        unit = torch.ones_like(frame)
        corners = to_pixels(boxes, unit)
        target_corners = to_pixels(target_boxes, unit)
        pair = (corners, target_corners) if self.corners else (boxes, target_boxes)
        distance = torch.cdist(*pair, p=1)
        giou = pairwise_giou(corners, target_corners)
        class_cost = self._class_cost(label_scores, stages[0])
        return self.classification * class_cost + self.box * distance - self.giou * giou

    def _class_cost(self, scores: Tensor, stage: Predictions) -> Tensor:
        """The class cost (L, B, Q, G) of the scores of each label."""
        if stage.activation == "softmax":
            return -scores
        positive = self.alpha * (1 - scores) ** self.gamma * -(scores + EPSILON).log()
        negative = (1 - self.alpha) * scores**self.gamma * -(1 - scores + EPSILON).log()
        return positive - negative
