"""Ground truths and predictions one to one, at least cost: all stages and images of a batch at once, with one transfer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detdistill.detectors.queries.frames import to_pixels, to_relative
from detdistill.distributed import mean_over_processes
from detdistill.geometry import pair_all
from detdistill.losses import pairwise_giou
from detdistill.types import Assignment, Predictions, Targets

EPSILON = 1e-8  # inside the logarithms, as published


@dataclass(frozen=True)
class Matcher:
    """The cost of a pair: classification * c + box * L1 of cx cy w h in 0..1, or with `corners` of x y x y, - giou * GIoU; DETR, arXiv:2005.12872.

    c is -p of the label with softmax, and with sigmoids the focal cost of Deformable DETR (arXiv:2010.04159) with alpha and gamma.
    """

    classification: float = 1.0
    box: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0
    corners: bool = False

    @torch.no_grad()
    def __call__(self, stages: Sequence[Predictions], frame: Tensor, targets: Targets) -> tuple[Assignment, ...]:
        """An assignment a stage; all have as many queries. frame (B, 2): what boxes are relative to. A stage with boxes or scores that aren't
        finite matches nothing."""
        counts = [len(labels) for labels in targets.labels]
        rows = torch.stack([stage.valid for stage in stages])  # (L, B, Q)
        matched = torch.full_like(rows, -1, dtype=torch.long)
        if sum(counts):
            pairs = pair_all(self.costs(stages, frame, targets).flatten(0, 1), counts * len(stages)).view_as(matched)
            finite = torch.stack([stage.boxes.isfinite().all() & stage.logits.isfinite().all() for stage in stages])
            matched = torch.where(finite[:, None, None], pairs, matched)
        positives = (matched >= 0).sum(2).clamp(min=1).sum(1).float()  # (L,)
        return tuple(
            Assignment(own, valid, mean_over_processes(count))
            for own, valid, count in zip(matched, rows, positives, strict=True)
        )

    def costs(self, stages: Sequence[Predictions], frame: Tensor, targets: Targets) -> Tensor:
        """(L, B, Q, G), G the most ground truths of an image; what stands beyond an image's own means nothing."""
        boxes = pad_sequence(list(targets.boxes), batch_first=True, padding_value=1.0)  # (B, G, 4)
        labels = pad_sequence(list(targets.labels), batch_first=True)  # (B, G)
        guess = to_relative(torch.stack([stage.boxes for stage in stages]).float(), frame)  # (L, B, Q, 4)
        truth = to_relative(boxes.float(), frame)
        scores = torch.stack([stage.scores() for stage in stages]).float()  # (L, B, Q, K)
        columns = labels[None, :, None].expand(len(scores), -1, scores.shape[2], -1)
        chosen = scores.gather(-1, columns)  # (L, B, Q, G)
        truth = truth.expand(len(guess), -1, -1, -1)
        unit = torch.ones_like(frame)
        corners = to_pixels(guess, unit), to_pixels(truth, unit)
        apart = torch.cdist(*(corners if self.corners else (guess, truth)), p=1)
        overlap = pairwise_giou(*corners)
        return self.classification * self._class_cost(chosen, stages[0]) + self.box * apart - self.giou * overlap

    def _class_cost(self, scores: Tensor, stage: Predictions) -> Tensor:
        if stage.activation == "softmax":
            return -scores
        absent = (1 - self.alpha) * scores**self.gamma * -(1 - scores + EPSILON).log()
        return self.alpha * (1 - scores) ** self.gamma * -(scores + EPSILON).log() - absent
