"""KD-DETR: consistent distillation points. Wang et al., CVPR 2024, arXiv:2211.08071.

    L = sum over groups of points, over pairs of stages  of  1/sum w  sum over points of
            w (weight_class KL(p_t || p_s) + weight_box L1 + weight_giou (1 - GIoU))

A point is a query that both decoders get in addition to their own queries. Point n of the student is point n of the
teacher, so no matching is needed. General points are drawn at each step in the teacher's parametrization, the same for
all images. Specific points are the teacher's own queries. w is the teacher's best class score of the point, or 1 with
`foreground: false`. The KL is summed over classes: with sigmoids it is one binary KL per class, with softmax one KL
over the classes. The minimum is 0.

The paper's repository has no code. We could not verify the following choices, so they are ours: the number of general
points, the weights (from the detectors' own losses), the sum of w as normalizer, and two groups for general and
specific points, without attention between the groups. The student's own queries and its detection loss are unchanged.
Queries that the teacher chooses from the image work too, because content and boxes are both passed on.
"""

from dataclasses import dataclass
from typing import Annotated, Self

import torch
from pydantic import Field
from torch import Tensor

from detdistill.distributed import mean_over_processes
from detdistill.geometry import to_relative
from detdistill.losses import soft_class_entropy
from detdistill.methods.method import Method, Weight, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.queries import (
    Stages,
    class_scores,
    query_terms,
    require_queries,
    require_transferable_queries,
    stage_indices,
    sum_terms,
    transferred_queries,
)
from detdistill.types import DetectorInfo, DetectorOutput, Need, Predictions, QueryPart, Targets, TrainState, required


@dataclass(frozen=True)
class KDDETRConfig:
    """weight_class, weight_box, weight_giou: weights of the three terms; a term of weight 0 is not computed.
    general: number of points drawn at each step; 0: none.
    specific: also use the teacher's own queries as points.
    foreground: weight each point by the teacher's best class score.
    stages: `all` pairs of stages, or only the `last` stage of each detector.
    """

    weight_class: Weight = 1.0
    weight_box: Weight = 5.0
    weight_giou: Weight = 2.0
    general: Annotated[int, Field(ge=0)] = 300
    specific: bool = True
    foreground: bool = True
    stages: Stages = "all"


class KDDETR(Method):
    """See the module docstring. Terms: `class`, `box`, `giou`."""

    name = "kddetr"
    group = "set predictions"
    paper = "arXiv:2211.08071"
    copies = "the predictions for queries that both decoders are given"
    requires = "queries of equal width on both sides; the teacher's have every part that the student's decoder reads"
    reads = "queries, decoder stages"
    gain = "DAB-DETR R50 42.2 to 45.7 (DAB-DETR R101)"
    unlabeled = True
    Config = KDDETRConfig

    def __init__(self, config: KDDETRConfig, shared: SharedClasses, parts: frozenset[QueryPart]):
        """parts: parts of queries that the student's decoder reads."""
        super().__init__()
        self.config, self.shared, self.parts = config, shared, parts
        self.need = Need(queries=True, predictions=config.specific)
        self.student_need = Need(queries=True)

    @classmethod
    def build(cls, config: KDDETRConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError if a detector has no queries, if the student's decoder cannot read the teacher's queries, if
        they share no class, or if all weights or all points are off."""
        require_queries(cls.name, student, teacher)
        is_active = config.weight_class or config.weight_box or config.weight_giou
        require(bool(is_active), cls.name, "all its weights are 0", "see the options of methods.kddetr")
        has_points = config.general > 0 or config.specific
        remedy = "set methods.kddetr.general to 300 or specific to true"
        require(has_points, cls.name, "there are no points: general is 0 and specific is false", remedy)
        remedy = "use a teacher of the student's family, or detrdistill with weight_assignment 0"
        require_transferable_queries(cls.name, student, teacher, remedy)
        return cls(config, SharedClasses.between(cls.name, student, teacher), required(student.queries).parts)

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        student_queries, teacher_queries = required(student_output.queries), required(teacher_output.queries)
        groups = []  # (student stages, teacher stages) on the same points
        if self.config.specific:
            points = teacher_queries.own
            student_stages = student_queries.redecode(transferred_queries(points, self.parts))
            groups.append((student_stages, teacher_output.stages))
        if self.config.general:
            points = teacher_queries.sample(self.config.general, _generator(state))
            with torch.no_grad():
                teacher_stages = teacher_queries.redecode(points)
            student_stages = student_queries.redecode(transferred_queries(points, self.parts))
            groups.append((student_stages, teacher_stages))
        sizes = teacher_output.pyramids["neck"].sizes
        terms = []
        for student_stages, teacher_stages in groups:
            indices = stage_indices(len(student_stages), len(teacher_stages), self.config.stages)
            for student_index, teacher_index in indices:
                student = self.shared.of_student(student_stages[student_index])
                teacher = self.shared.of_teacher(teacher_stages[teacher_index])
                terms.append(self.stage_terms(student, teacher, sizes))
        return sum_terms(terms)

    def stage_terms(self, student: Predictions, teacher: Predictions, sizes: Tensor) -> dict[str, Tensor]:
        """The weighted terms of one pair of stages, (): student row n against teacher row n.

        sizes (B, 2): of the images.
        """
        config = self.config
        trust = teacher.scores().detach().amax(-1)  # (B, P, K) -> (B, P)
        if not config.foreground:
            trust = torch.ones_like(teacher.boxes[..., 0])
        point_weights = trust / mean_over_processes(trust.sum(), floor=1e-6)  # (B, P)
        student_boxes = to_relative(student.boxes.float(), sizes)
        teacher_boxes = to_relative(teacher.boxes.detach().float(), sizes)
        scores = class_scores(teacher, student)
        weights = config.weight_class, config.weight_box, config.weight_giou
        terms = query_terms(student, student_boxes, scores, teacher_boxes, weights, point_weights, point_weights)
        if config.weight_class:  # subtract the minimum of the cross-entropy: the rest is the KL
            entropy = (soft_class_entropy(scores, student.activation) * point_weights).sum()
            terms["class"] = terms["class"] - config.weight_class * entropy
        return terms


def _generator(state: TrainState) -> torch.Generator:
    """The run's generator, or one with a random seed from torch's global generator."""
    if state.generator is not None:
        return state.generator
    return torch.Generator().manual_seed(int(torch.randint(2**31, ())))
