"""Two set predictors, stage by stage and query by query.

Stages. Of L_s student and L_t teacher stages, teacher stage t teaches student stage ceil(t L_s / L_t), so that of six and three two teach each; a
student that is deeper than its teacher learns from stage ceil(k L_t / L_s). Queries are paired one to one at least cost, all stages and
images in one go. Classes meet by name (`methods.shared.classes`). Between a softmax and sigmoids the teacher's scores are read as what the
student's head can say: sigmoids take the softmax's probabilities without its background; a softmax takes sigmoids' scores with what they leave
to one as background, brought to sum one.
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
from detdistill.types import DetectorInfo, Predictions

Depth = Literal["all", "last"]
Places = Sequence[tuple[int, int]]  # of a student's and a teacher's stage, from 0


@dataclass(frozen=True, eq=False)
class StagePair:
    """A student's and a teacher's stage and their paired queries. partner (B, Q): the teacher query of each student query, -1 for none.

    student_boxes (B, Q, 4), teacher_boxes (B, M, 4): cx cy w h in 0..1 of each image; scores (B, M, K): what the student's classes learn;
    classified (B, M): the teacher queries whose class counts. Nothing of the teacher's carries gradient.
    """

    partner: Tensor
    student: Predictions
    teacher: Predictions
    student_boxes: Tensor
    teacher_boxes: Tensor
    scores: Tensor
    classified: Tensor

    @property
    def paired(self) -> Tensor:
        """(B, Q) bool."""
        return self.partner >= 0

    def of_partner(self, values: Tensor) -> Tensor:
        """(B, M, ...) of the teacher's queries to (B, Q, ...) of their partners; where there is none, the first query's."""
        index = self.partner.clamp(min=0)
        return values.gather(1, index.view(*index.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:]))


def stage_places(student: int, teacher: int, depth: Depth = "all") -> list[tuple[int, int]]:
    """The pairs of stages of detectors that have so many; see the module's head. `last`: the last with the last."""
    if depth == "last":
        return [(student - 1, teacher - 1)]
    if student > teacher:
        return [(stage, -(-(stage + 1) * teacher // student) - 1) for stage in range(student)]
    return [(-(-(stage + 1) * student // teacher) - 1, stage) for stage in range(teacher)]


def pair_stages(
    student: Sequence[Predictions],
    teacher: Sequence[Predictions],
    places: Places,
    sizes: Tensor,
    classified: Sequence[Tensor] | None = None,
    *,
    clip: bool = False,
    weights: tuple[float, float, float] = (1.0, 5.0, 2.0),
) -> list[StagePair]:
    """The pairs at `places`, queries matched by `losses.query_costs` with `weights`. Stages are on shared classes; sizes (B, 2): the images'.

    classified: (B, M) bool of each teacher stage, the queries whose class counts, in the cost too; none: all. clip: teacher boxes to the image.
    Of a teacher with more queries than the student's those that cost the most go without a partner, but no classified one before the others.
    """
    rows, costs = [], []
    for mine, theirs in places:
        guess, taught = student[mine], teacher[theirs]
        boxes = taught.boxes.detach().float()
        boxes = to_relative(boxes.clamp(min=0).minimum(extents(sizes)) if clip else boxes, sizes)
        own, scores = to_relative(guess.boxes.float(), sizes), class_scores(taught, guess)
        counted = taught.valid if classified is None else classified[theirs]
        cost = query_costs(class_logits(guess), scores, own, boxes, guess.activation, weights, counted)  # (B, Q, M)
        if classified is not None and cost.shape[-1] > cost.shape[-2]:
            # Their class makes them dear: less than all else together could cost they are taken first.
            cost = cost - (cost.amax() - cost.amin() + 1) * cost.shape[-2] * counted[..., None, :]
        costs.append(cost)
        rows.append((guess, taught, own, boxes, scores, counted))
    partners = pair_all(torch.cat(costs)).split(len(sizes))
    return [StagePair(partner, *parts) for partner, parts in zip(partners, rows, strict=True)]


def instance_terms(pair: StagePair, weights: tuple[float, float, float], negatives: bool = True) -> dict[str, Tensor]:
    """`class`, `box`, `giou` of one pair of stages, weighted, (): what each student query says against its partner.

    The class of the pairs whose teacher query is classified counts, the boxes of all pairs, without `negatives` of these too. Sums are divided by the
    number of all pairs, averaged over processes, at least 1. A term of weight 0 is left out.
    """
    known = pair.paired & pair.of_partner(pair.classified)
    pairs = mean_over_processes(pair.paired.sum().float())
    taught = pair.of_partner(pair.scores), pair.of_partner(pair.teacher_boxes)
    return answer_terms(
        pair.student, pair.student_boxes, *taught, weights, known / pairs, (pair.paired if negatives else known) / pairs
    )


def answer_terms(
    student: Predictions,
    boxes: Tensor,
    scores: Tensor,
    aims: Tensor,
    weights: tuple[float, float, float],
    counted: Tensor,
    shares: Tensor,
) -> dict[str, Tensor]:
    """`class`, `box` and `giou` of student rows against what each is to say, weighted, (); one of weight 0 is left out.

    boxes, aims (B, Q, 4): cx cy w h in 0..1 of each image; scores: as of `class_scores`. counted, shares (B, Q): what a row weighs in the
    class term and in those of boxes.
    """
    terms = {}
    if weights[0]:
        terms["class"] = (
            weights[0] * (soft_class_distance(class_logits(student), scores, student.activation) * counted).sum()
        )
    if weights[1]:
        terms["box"] = weights[1] * ((boxes - aims).abs().sum(-1) * shares).sum()
    if weights[2]:
        corners = (box_convert(side, "cxcywh", "xyxy") for side in (boxes, aims))
        terms["giou"] = weights[2] * (giou_distance(*corners) * shares).sum()
    return terms


def class_logits(stage: Predictions) -> Tensor:
    """(B, N, K), with softmax (B, N, K + 1), the background last."""
    return stage.logits if stage.background is None else torch.cat([stage.logits, stage.background[..., None]], dim=-1)


def class_scores(teacher: Predictions, student: Predictions) -> Tensor:
    """What the student's `class_logits` are to learn of the teacher's stage, see the module's head; no gradient."""
    if student.activation == "sigmoid":
        return teacher.scores().detach()
    if teacher.activation == "softmax":
        return class_logits(teacher).detach().softmax(-1)
    scores = teacher.scores().detach()
    scores = torch.cat([scores, (1 - scores.sum(-1, keepdim=True)).clamp(min=0)], dim=-1)
    return scores / scores.sum(-1, keepdim=True)


def require_queries(method: str, student: DetectorInfo, teacher: DetectorInfo) -> None:
    """Raises UserError unless both predict by queries."""
    for side, info in (("student", student), ("teacher", teacher)):
        lacking = f"the {side} ({info.kind}) has no queries"
        require(
            info.queries is not None,
            method,
            lacking,
            "take a detector of the DETR family, such as deformable_detr or rt_detr",
        )
