"""Distances between the predictions of two dense heads in the same cells, as in CrossKD's code (arXiv:2306.11369).

    class     sum over rows and classes of |sigma(z') - sigma(z)|^beta BCE(z', sigma(z)) / D_class
    box       sum over rows of u * d(b', b) / D_box,    d: mean over sides of the KL, 1 - GIoU, or -log IoU
    quality   sum over positives of BCE(c', sigma(c)) / number of positives

A row is one prediction of the head. z', b', c' are the logits, boxes and quality of the student (mimicking) or of the
student's features in the teacher's head (CrossKD); z, b, c are the teacher's. u is the teacher's best score max_k
sigma(z_k) if `trust` is set, else 1.

The rows that count (`class_region`, `box_region`) and the divisors D (`class_normalizer`, `box_normalizer`) differ
between the detectors of the published code. The text of the paper counts all rows (version 2), or the foreground for
boxes (version 1). D is averaged over processes and is at least 1. Rows in which the teacher's box has no area get no
box loss: torchvision's FCOS clips distances at 0, while the published FCOS takes exp.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from detdistill.distributed import mean_over_processes
from detdistill.losses import edge_kl, giou_distance, log_iou_distance
from detdistill.methods.method import Temperature, Weight, require
from detdistill.types import Assignment, DetectorInfo, Predictions, required

Region = Literal["valid", "all", "positive"]
Normalizer = Literal["positives", "trust", "quality"]


@dataclass(frozen=True)
class PredictionConfig:
    """Options of the terms that compare dense predictions. A term of weight 0 is not computed.

    weight_class, weight_box, weight_quality: weights of the three terms.
    beta: exponent of the class term, 0 or at least 1.
    box: distance of boxes. `edges`: KL of the side distributions; both detectors need them. `giou`: 1 - GIoU.
        `log_iou`: -log IoU. `auto`: `edges` if both have side distributions, else `giou`.
    temperature: temperature of the KL.
    class_region, box_region: rows that count. `valid`: rows that take part in the student's task loss. `all`: all rows.
        `positive`: positives.
    trust: weight each row of the box term by the teacher's best score.
    class_normalizer, box_normalizer: divisor of a term. `positives`: number of positives. `trust`: sum of the teacher's
        best scores over the rows of `box_region`. `quality`: sum of the quality targets.
    """

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


def weighted_terms(
    config: PredictionConfig,
    teacher_scores: Tensor,
    assignment: Assignment,
    class_rows: Callable[[], Tensor],
    box_rows: Callable[[], Tensor],
    quality: Callable[[], Tensor],
) -> dict[str, Tensor]:
    """The terms `class`, `box` and `quality` of the module docstring, weighted, each ().

    A function is not called if its weight is 0.
    teacher_scores: (B, N, K), detached.
    class_rows, box_rows: compute the distance of each row, (B, N).
    quality: computes the quality term without its weight, ().
    """
    trust = teacher_scores.amax(-1) * _region(assignment, config.box_region)  # (B, N)

    def divisor(normalizer: Normalizer) -> Tensor:
        if normalizer == "positives":
            return assignment.num_positives
        total = trust.sum() if normalizer == "trust" else required(assignment.quality).sum()
        return mean_over_processes(total)

    terms = {}
    if config.weight_class:
        total = (class_rows() * _region(assignment, config.class_region)).sum()
        terms["class"] = config.weight_class * total / divisor(config.class_normalizer)
    if config.weight_box:
        total = (box_rows() * (trust if config.trust else _region(assignment, config.box_region))).sum()
        terms["box"] = config.weight_box * total / divisor(config.box_normalizer)
    if config.weight_quality:
        terms["quality"] = config.weight_quality * quality()
    return terms


def box_distance(
    student_predictions: Predictions, teacher_predictions: Predictions, config: PredictionConfig
) -> Tensor:
    """The distance d of the module docstring per row, (B, N). No gradient to the teacher."""
    student_edges, teacher_edges = student_predictions.edges, teacher_predictions.edges
    if config.box in ("auto", "edges") and student_edges is not None and teacher_edges is not None:
        return edge_kl(student_edges, teacher_edges, config.temperature).mean(-1)  # (B, N, 4) -> (B, N)
    distance = log_iou_distance if config.box == "log_iou" else giou_distance
    teacher_boxes = teacher_predictions.boxes.detach()
    has_area = (teacher_boxes[..., 2:] > teacher_boxes[..., :2]).all(-1)  # (B, N)
    return distance(student_predictions.boxes, teacher_boxes) * has_area


def quality_distance(
    student_predictions: Predictions, teacher_predictions: Predictions, assignment: Assignment
) -> Tensor:
    """The quality term of the module docstring, unweighted, (). Its minimum is the entropy of the teacher's quality."""
    positive = assignment.positive
    student_logits = required(student_predictions.quality)[positive]  # (B, N) -> (n,)
    teacher_quality = required(teacher_predictions.quality).detach()[positive].sigmoid()
    total = F.binary_cross_entropy_with_logits(student_logits, teacher_quality, reduction="sum")
    return total / assignment.num_positives


def require_same_cells(method: str, student: DetectorInfo, teacher: DetectorInfo) -> None:
    """Raises UserError unless both are dense detectors that predict in the same cells.

    The same cells means equal strides and anchors per cell, and equal anchor sizes if a cell has several anchors. The
    grid of an RPN does not count.
    """
    for side, info in (("student", student), ("teacher", teacher)):
        is_dense = info.grid is not None and info.proposals is None
        require(is_dense, method, f"the {side} ({info.kind}) has no dense head", "use retinanet, fcos, atss or gfl")
    student_grid, teacher_grid = required(student.grid), required(teacher.grid)
    grids = f"the student predicts at strides {student.strides} with {student_grid.anchors_per_cell} anchors per cell, "
    grids += f"the teacher at {teacher.strides} with {teacher_grid.anchors_per_cell}"
    remedy = "predictions are compared cell by cell, so give both the same grid, or use crosskd or pkd"
    same_anchors = student_grid.anchors_per_cell == teacher_grid.anchors_per_cell
    require(student.strides == teacher.strides and same_anchors, method, grids, remedy)
    require(
        student_grid.anchors_per_cell == 1 or student_grid.cell_anchors == teacher_grid.cell_anchors,
        method,
        "the anchors of a cell differ in size",
        "give both the same anchors, or use crosskd or pkd",
    )


def unmet_requirement(config: PredictionConfig, student: DetectorInfo, teacher: DetectorInfo) -> str:
    """What these options require and the pair lacks, in words; an empty string if nothing is missing.

    For CrossKD both arguments are the teacher, because both sides of its comparison come from the teacher's head.
    """
    if not (config.weight_class or config.weight_box or config.weight_quality):
        return "all its weights are 0"
    if config.weight_class and 0 < config.beta < 1:
        return (
            f"with a beta of {config.beta:g} the gradient has no bound for equal scores; set beta to 0, or to 1 or more"
        )
    if config.box == "edges" and (student.edges is None or student.edges != teacher.edges):
        bins = f"{_bins(student)} and {_bins(teacher)}"
        return f"box distance `edges` needs equal distance distributions, the numbers of bins are {bins}"
    if config.box == "auto" and student.edges and teacher.edges and student.edges != teacher.edges:
        return f"the distance distributions have {_bins(student)} and {_bins(teacher)} bins"
    if config.weight_quality and not (student.has_quality and teacher.has_quality):
        return "weight_quality needs a centerness or IoU branch on both sides"
    if "quality" in (config.class_normalizer, config.box_normalizer) and not student.has_quality:
        return "normalizer `quality` needs a head with a centerness branch"
    return ""


def _bins(info: DetectorInfo) -> int | None:
    return None if info.edges is None else info.edges.bins


def _region(assignment: Assignment, region: Region) -> Tensor:
    """1 for the rows that count and 0 for the others, (B, N), float."""
    if region == "positive":
        return assignment.positive.float()
    return assignment.valid.float() if region == "valid" else assignment.valid.new_ones(assignment.valid.shape).float()
