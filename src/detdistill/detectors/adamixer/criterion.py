"""AdaMixer's task terms, focal loss, L1 of corners and GIoU, on every stage alike."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from detdistill.detectors.queries.detector import by_stage
from detdistill.detectors.queries.frames import extents
from detdistill.distributed import mean_over_processes
from detdistill.losses import giou_distance
from detdistill.types import Predictions, Targets, required

WEIGHTS: Mapping[str, float] = {"classification": 2.0, "box": 5.0, "giou": 2.0}
ALPHA, GAMMA = 0.25, 2.0  # of the focal loss, arXiv:1708.02002


def set_terms(stages: Sequence[Predictions], frame: Tensor, targets: Targets) -> dict[str, Tensor]:
    """Weighted terms of every stage under the assignment it carries: those of the last have plain names, those of an earlier stage i end in `_i`.

    L1 is of x y x y in 0..1 of the frame (B, 2). Each is divided by the number of ground truths, averaged over processes, at least 1. Not a
    number where predictions aren't finite.
    """
    total = sum(len(labels) for labels in targets.labels)
    count = mean_over_processes(torch.tensor(float(total), device=frame.device))
    return by_stage(
        [
            {name: WEIGHTS[name] * term / count for name, term in _sums(stage, frame, targets).items()}
            for stage in stages
        ]
    )


def _sums(stage: Predictions, frame: Tensor, targets: Targets) -> dict[str, Tensor]:
    """Sums over queries of one stage, unweighted."""
    assignment = required(stage.assignment)
    positive = assignment.positive & assignment.valid
    pairs = list(zip(assignment.matched, positive, strict=True))
    labels = torch.cat([own[row[mask]] for own, (row, mask) in zip(targets.labels, pairs, strict=True)])
    truth = torch.cat([own[row[mask]] for own, (row, mask) in zip(targets.boxes, pairs, strict=True)]).to(
        stage.boxes.dtype
    )
    wanted = torch.zeros_like(stage.logits)
    wanted[(*positive.nonzero(as_tuple=True), labels)] = 1.0
    focal = sigmoid_focal_loss(stage.logits, wanted, alpha=ALPHA, gamma=GAMMA, reduction="none").sum(-1)
    guess = stage.boxes[positive]
    apart = ((guess - truth) / extents(frame[positive.nonzero()[:, 0]])[:, 0]).abs().sum()
    nothing = stage.boxes.sum() * 0  # keeps the graph where nothing is matched, and isn't a number where a box isn't
    return {
        "classification": (focal * assignment.valid).sum(),
        "box": apart + nothing,
        "giou": giou_distance(guess, truth).sum() + nothing,
    }
