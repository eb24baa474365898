"""Distances between two dense predictions on one grid, as CrossKD's code and prediction mimicking use them (arXiv:2306.11369).

    class     sum over rows and classes of |sigma(z') - sigma(z)|^beta BCE(z', sigma(z)) / D_cls
    box       sum over rows of u * d(b', b) / D_box,  u = max_k sigma(z_k) where `trust`,  d = mean over sides of KL, 1 - GIoU, or -log IoU
    quality   sum over positives of BCE(c', sigma(c)) / positives

z' is the guess, z the teacher's. Which rows count (`region`) and what D is (`normalizer`) differs from detector to detector in the published
code; the paper's text says 1 everywhere (v2), or foreground for boxes (v1). D is averaged over processes and at least 1.
A teacher's box without area (torchvision's FCOS cuts distances at 0 where the published one takes exp) teaches nothing.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from detdistill.distributed import mean_over_processes
from detdistill.losses import edge_kl, giou_distance, log_iou_distance, quality_focal
from detdistill.methods.method import Temperature, Weight, require
from detdistill.types import Assignment, DetectorInfo, Predictions, required

Region = Literal["valid", "all", "positive"]
Normalizer = Literal["positives", "trust", "quality"]


@dataclass(frozen=True)
class PredictionConfig:
    """weight_class, weight_box, weight_quality: of the three terms; a term of weight 0 is not computed. beta: of the class term, 0 or at least 1.
    box: `edges` (KL of side distributions, where both have them), `giou`, `log_iou`; auto: edges where both have them, else giou.
    temperature: of the KL. class_region, box_region: rows that count: those that take part in the student's own loss, all, or positives.
    trust: box rows weigh as much as the teacher's best score. class_normalizer, box_normalizer: number of positives, sum of trust, or sum of the
    quality targets."""

    weight_class: Weight = 1.0
    weight_box: Weight = 1.0
    weight_quality: Weight = 0.0
    beta: Weight = 1.0
    box: Literal["auto", "edges", "giou", "log_iou"] = "auto"
    temperature: Temperature = 1.0
    class_region: Region = "valid"
    box_region: Region = "valid"
    trust: bool = True
    class_normalizer: Normalizer = "positives"
    box_normalizer: Normalizer = "positives"


def prediction_terms(
    guess: Predictions, taught: Predictions, assignment: Assignment, config: PredictionConfig
) -> dict[str, Tensor]:
    """The terms `class`, `box` and `quality` above, weighted, (). All three are on one layout; no gradient to `taught`."""
    scores = taught.scores().detach()
    trust = scores.amax(-1) * _region(assignment, config.box_region)
    divisors = {"positives": lambda: assignment.num_positives, "trust": lambda: mean_over_processes(trust.sum())}
    divisors["quality"] = lambda: mean_over_processes(required(assignment.quality).sum())
    terms = {}
    if config.weight_class:
        rows = quality_focal(guess.logits, scores, config.beta).sum(-1) * _region(assignment, config.class_region)
        terms["class"] = config.weight_class * rows.sum() / divisors[config.class_normalizer]()
    if config.weight_box:
        weight = trust if config.trust else _region(assignment, config.box_region)
        rows = box_distance(guess, taught, config) * weight
        terms["box"] = config.weight_box * rows.sum() / divisors[config.box_normalizer]()
    if config.weight_quality:
        terms["quality"] = config.weight_quality * quality_distance(guess, taught, assignment)
    return terms


def box_distance(guess: Predictions, taught: Predictions, config: PredictionConfig) -> Tensor:
    """(B, N)."""
    if guess.edges is not None and taught.edges is not None and config.box in ("auto", "edges"):
        return edge_kl(guess.edges, taught.edges, config.temperature).mean(-1)
    distance = log_iou_distance if config.box == "log_iou" else giou_distance
    boxes = taught.boxes.detach()
    has_area = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    return distance(guess.boxes, boxes) * has_area


def quality_distance(guess: Predictions, taught: Predictions, assignment: Assignment) -> Tensor:
    """Binary cross-entropy to the teacher's quality over the positives, by their number, (). Minimum: the entropy of the target."""
    positive = assignment.positive
    target = required(taught.quality).detach()[positive].sigmoid()
    return (
        F.binary_cross_entropy_with_logits(required(guess.quality)[positive], target, reduction="sum")
        / assignment.num_positives
    )


def require_same_cells(method: str, student: DetectorInfo, teacher: DetectorInfo) -> None:
    """Raises UserError unless both have a dense head that predicts in the same cells, with the same anchors where a cell has several."""
    for side, info in (("student", student), ("teacher", teacher)):
        require(
            info.towers is not None,
            method,
            f"the {side} ({info.kind}) has no dense head",
            "take retinanet, fcos, atss or gfl",
        )
    mine, theirs = required(student.grid), required(teacher.grid)
    grids = f"the student predicts at strides {student.strides} with {mine.anchors_per_cell} anchors a cell"
    grids += f", the teacher at {teacher.strides} with {theirs.anchors_per_cell}"
    same = student.strides == teacher.strides and mine.anchors_per_cell == theirs.anchors_per_cell
    require(
        same, method, grids, "predictions are compared cell by cell, so give both the same grid, or use crosskd or pkd"
    )
    if mine.anchors_per_cell != 1:
        lacking = "the anchors of a cell differ in size"
        require(
            mine.cell_anchors == theirs.cell_anchors,
            method,
            lacking,
            "give both the same anchors, or use crosskd or pkd",
        )


def unmet(config: PredictionConfig, guess: DetectorInfo, taught: DetectorInfo) -> str:
    """What these options ask for and this pair of outputs lacks, in words, or an empty string."""
    if not (config.weight_class or config.weight_box or config.weight_quality):
        return "all its weights are 0"
    if config.weight_class and 0 < config.beta < 1:
        return (
            f"with a beta of {config.beta:g} the gradient has no bound where the scores agree; 0 or 1 and more are fine"
        )
    if config.box == "edges" and (guess.edges is None or guess.edges != taught.edges):
        return (
            f"box distance `edges` needs equal distance distributions, the bins are {_bins(guess)} and {_bins(taught)}"
        )
    if config.box == "auto" and guess.edges and taught.edges and guess.edges != taught.edges:
        return f"the distance distributions have {_bins(guess)} and {_bins(taught)} bins"
    if config.weight_quality and not (guess.has_quality and taught.has_quality):
        return "weight_quality needs a centre-ness or IoU branch on both sides"
    if "quality" in (config.class_normalizer, config.box_normalizer) and not guess.has_quality:
        return "normalizer `quality` needs a head with a centre-ness branch"
    return ""


def _bins(info: DetectorInfo) -> int | None:
    return None if info.edges is None else info.edges.bins


def _region(assignment: Assignment, region: Region) -> Tensor:
    """(B, N) of 0 and 1."""
    if region == "positive":
        return assignment.positive.float()
    return assignment.valid.float() if region == "valid" else assignment.valid.new_ones(assignment.valid.shape).float()
