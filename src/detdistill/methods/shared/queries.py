"""Set predictors: pairs of decoder stages and queries, their loss terms, and teacher queries for the student's decoder.

In this paragraph, stages are counted from 1. With L_s student stages and L_t teacher stages, teacher stage t is paired
with student stage ceil(t L_s / L_t). For example, with three student stages and six teacher stages, each student stage
is paired with two teacher stages. If the student has more stages, student stage k is paired with teacher stage
ceil(k L_t / L_s).

Queries are paired one to one with the lowest total cost, for all stages and images in one call. Classes are matched by
name (`methods.shared.classes`). If only one detector has a softmax, the teacher's scores are converted. A student with
sigmoids gets the softmax probabilities without the background. A student with a softmax gets the sigmoid scores and,
as background, 1 minus their sum (at least 0). All of these are then divided by their sum, so that they sum to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import box_convert

from detdistill.distributed import mean_over_processes
from detdistill.geometry import extents, pair_all, to_relative
from detdistill.losses import giou_distance, query_costs, soft_class_distance
from detdistill.methods.method import require
from detdistill.types import DetectorInfo, Predictions, QueryPart, QuerySet, required

Stages = Literal["all", "last"]
Weights = tuple[float, float, float]  # of class, L1 and GIoU
Terms = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class StagePair:
    """A student stage and a teacher stage with paired queries. Q student queries, M teacher queries.

    partner (B, Q): index of the teacher query that each student query is paired with, -1 for none.
    student, teacher: predictions of the two stages.
    student_boxes (B, Q, 4), teacher_boxes (B, M, 4): cx cy w h in 0..1 of each image.
    teacher_scores (B, M, K): see `class_scores`.
    classified (B, M): True for teacher queries whose class is compared.
    The teacher's boxes and scores are detached.
    """

    partner: Tensor
    student: Predictions
    teacher: Predictions
    student_boxes: Tensor
    teacher_boxes: Tensor
    teacher_scores: Tensor
    classified: Tensor

    @property
    def has_partner(self) -> Tensor:
        """True for student queries with a partner, (B, Q) bool."""
        return self.partner >= 0

    def of_partner(self, values: Tensor) -> Tensor:
        """Values (B, M, ...) of teacher queries, picked for the student queries: (B, Q, ...).

        A student query without a partner gets the value of teacher query 0.
        """
        index = self.partner.clamp(min=0)
        index = index.view(*index.shape, *[1] * (values.ndim - 2))  # (B, Q) -> (B, Q, 1, ...)
        return values.gather(1, index.expand(-1, -1, *values.shape[2:]))  # (B, M, ...) -> (B, Q, ...)


def stage_indices(student: int, teacher: int, stages: Stages = "all") -> list[tuple[int, int]]:
    """Pairs of (student stage, teacher stage), counted from 0, for these numbers of stages. See the module docstring.

    stages: `last` pairs only the two last stages.
    """
    if stages == "last":
        return [(student - 1, teacher - 1)]
    if student > teacher:
        return [(stage, -(-(stage + 1) * teacher // student) - 1) for stage in range(student)]
    return [(-(-(stage + 1) * student // teacher) - 1, stage) for stage in range(teacher)]


def pair_stages(
    student: Sequence[Predictions],
    teacher: Sequence[Predictions],
    indices: Sequence[tuple[int, int]],
    sizes: Tensor,
    classified: Sequence[Tensor] | None = None,
    *,
    clip: bool = False,
    weights: Weights = (1.0, 5.0, 2.0),
) -> list[StagePair]:
    """The stages at `indices` with paired queries. The cost is `losses.query_costs` with `weights`.

    student, teacher: stages on the shared classes. sizes (B, 2): of the images.
    classified: for each teacher stage, (B, M) bool, the queries whose class is compared, also in the cost; None: all.
    clip: clip the teacher's boxes to the image.
    If the teacher has more queries than the student, the total cost decides which teacher queries get no partner.
    Classified queries are always paired first.
    """
    unmatched, costs = [], []
    for student_index, teacher_index in indices:
        student_stage, teacher_stage = student[student_index], teacher[teacher_index]
        student_boxes = to_relative(student_stage.boxes.float(), sizes)
        teacher_pixels = teacher_stage.boxes.detach().float()
        if clip:
            teacher_pixels = teacher_pixels.clamp(min=0).minimum(extents(sizes))
        teacher_boxes = to_relative(teacher_pixels, sizes)
        scores = class_scores(teacher_stage, student_stage)
        is_classified = teacher_stage.valid if classified is None else classified[teacher_index]
        logits, activation = class_logits(student_stage), student_stage.activation
        cost = query_costs(
            logits, scores, student_boxes, teacher_boxes, activation, weights, is_classified
        )  # (B, Q, M)
        if classified is not None and cost.shape[-1] > cost.shape[-2]:
            # Subtract more than any total cost can be, so that classified queries are matched first.
            cost = cost - (cost.amax() - cost.amin() + 1) * cost.shape[-2] * is_classified[..., None, :]
        costs.append(cost)
        unmatched.append((student_stage, teacher_stage, student_boxes, teacher_boxes, scores, is_classified))
    partners = pair_all(torch.cat(costs)).split(len(sizes))  # (pairs B, Q, M) -> pairs of (B, Q)
    return [StagePair(partner, *parts) for partner, parts in zip(partners, unmatched, strict=True)]


def instance_terms(pair: StagePair, weights: Weights, negatives: bool = True) -> Terms:
    """Weighted terms `class`, `box` and `giou` of one pair of stages, (): each student query against its partner.

    The class is compared for pairs whose teacher query is classified. Boxes are compared for all pairs, or for the same
    pairs if `negatives` is False. Sums are divided by the number of all pairs, averaged over processes, at least 1. A
    term of weight 0 is left out.
    """
    is_classified = pair.has_partner & pair.of_partner(pair.classified)  # (B, Q)
    count = mean_over_processes(pair.has_partner.sum().float())
    has_box = pair.has_partner if negatives else is_classified
    return query_terms(
        pair.student,
        pair.student_boxes,
        pair.of_partner(pair.teacher_scores),
        pair.of_partner(pair.teacher_boxes),
        weights,
        class_weights=is_classified / count,
        box_weights=has_box / count,
    )


def query_terms(
    student: Predictions,
    student_boxes: Tensor,
    teacher_scores: Tensor,
    teacher_boxes: Tensor,
    weights: Weights,
    class_weights: Tensor,
    box_weights: Tensor,
) -> Terms:
    """Weighted terms `class`, `box` and `giou`, (): student row n against teacher row n.

    student_boxes, teacher_boxes (B, Q, 4): cx cy w h in 0..1 of each image. teacher_scores: see `class_scores`.
    A term of weight 0 is left out.
    class_weights, box_weights (B, Q): factor of each row in the class term, and in the box and giou terms.
    """
    weight_class, weight_box, weight_giou = weights
    terms = {}
    if weight_class:
        distance = soft_class_distance(class_logits(student), teacher_scores, student.activation)  # (B, Q)
        terms["class"] = weight_class * (distance * class_weights).sum()
    if weight_box:
        terms["box"] = weight_box * ((student_boxes - teacher_boxes).abs().sum(-1) * box_weights).sum()
    if weight_giou:
        student_corners = box_convert(student_boxes, "cxcywh", "xyxy")
        teacher_corners = box_convert(teacher_boxes, "cxcywh", "xyxy")
        terms["giou"] = weight_giou * (giou_distance(student_corners, teacher_corners) * box_weights).sum()
    return terms


def sum_terms(stages: Sequence[Terms]) -> Terms:
    """The sum of each term over pairs of stages."""
    return {name: torch.stack([terms[name] for terms in stages]).sum() for name in stages[0]}


def class_logits(stage: Predictions) -> Tensor:
    """The class logits (B, N, K); with softmax (B, N, K + 1), background last."""
    return stage.logits if stage.background is None else torch.cat([stage.logits, stage.background[..., None]], dim=-1)


def class_scores(teacher: Predictions, student: Predictions) -> Tensor:
    """The teacher's scores in the form of the student's `class_logits`, detached. See the module docstring."""
    if student.activation == "sigmoid":
        return teacher.scores().detach()
    if teacher.activation == "softmax":
        return class_logits(teacher).detach().softmax(-1)
    scores = teacher.scores().detach()  # (B, N, K)
    background = (1 - scores.sum(-1, keepdim=True)).clamp(min=0)
    scores = torch.cat([scores, background], dim=-1)  # (B, N, K + 1)
    return scores / scores.sum(-1, keepdim=True)


def transferred_queries(queries: QuerySet, parts: frozenset[QueryPart]) -> QuerySet:
    """The parts of a teacher's queries that the student's decoder reads, detached."""
    return QuerySet(**{part: getattr(queries, part).detach() for part in parts})


def require_queries(method: str, student: DetectorInfo, teacher: DetectorInfo) -> None:
    """Raises UserError if a detector has no queries."""
    remedy = "use a detector of the DETR family, such as deformable_detr or rt_detr"
    for side, info in (("student", student), ("teacher", teacher)):
        require(info.queries is not None, method, f"the {side} ({info.kind}) has no queries", remedy)


def require_transferable_queries(method: str, student: DetectorInfo, teacher: DetectorInfo, remedy: str) -> None:
    """Raises UserError if the teacher's queries lack a part that the student's decoder reads, or have another width.

    Width does not count if the student's decoder reads only reference boxes. remedy: what to do if the two are of
    different kinds.
    """
    student_queries, teacher_queries = required(student.queries), required(teacher.queries)
    is_same_kind = student.kind == teacher.kind
    missing = sorted(student_queries.parts - teacher_queries.parts)
    problem = f"the student's decoder ({student.kind}) reads the {' and '.join(missing)} of queries, "
    problem += f"which the teacher's queries ({teacher.kind}) do not have"
    require(not missing, method, problem, "build both with --model.two-stage, or neither" if is_same_kind else remedy)
    problem = f"the student's queries have width {student_queries.width}, the teacher's {teacher_queries.width}"
    fits = student_queries.width == teacher_queries.width or student_queries.parts == {"reference"}
    same_width = "give the student the teacher's --model.channels"
    require(fits, method, problem, same_width if is_same_kind else f"{same_width}, or {remedy}")


def require_learned_queries(method: str, student: DetectorInfo, teacher: DetectorInfo, remedy: str) -> None:
    """Raises UserError if a detector chooses its queries from each image."""
    for side, info in (("student", student), ("teacher", teacher)):
        problem = f"the {side} ({info.kind}) has no learned queries: it chooses them from each image, so that the "
        problem += "teacher's queries cannot be passed to the student"
        require(required(info.queries).learned, method, problem, remedy)
