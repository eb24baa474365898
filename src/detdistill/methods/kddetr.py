"""KD-DETR: consistent distillation points. Wang et al., CVPR 2024, arXiv:2211.08071.

    L = sum over groups of points, over pairs of stages  of  1/sum w  sum over points of
            w (weight_class KL(p_t || p_s) + weight_box L1 + weight_giou (1 - GIoU))

A point is a query that both decoders are given beside their own, so that point n of the one is point n of the other and nothing is matched.
General points are drawn anew each step in the teacher's parametrisation, the same for all images; specific points are the teacher's own
queries. w: the teacher's best class score of the point (`foreground: false`: 1). KL: of each class's yes or no with sigmoids, of the one choice with
softmax, summed over classes. Minimum 0.

The paper's repository has no code. Unverified, so ours: the number of general points, the weights (those of the detectors' own losses), w's sum as
the normaliser, and that general and specific points are two groups which don't attend to each other. The teacher's own part in the student (the
detection loss) is untouched. Queries drawn from the image serve too, as they are given whole: content and boxes of the teacher's choice.
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
from detdistill.methods.shared.queries import Depth, answer_terms, class_scores, require_queries, stage_places
from detdistill.methods.shared.transfer import handed_over, require_width
from detdistill.types import DetectorInfo, DetectorOutput, Need, Predictions, QueryPart, Targets, TrainState, required


@dataclass(frozen=True)
class KDDETRConfig:
    """weight_class, weight_box, weight_giou: of the three terms; one of weight 0 is not computed. general: points drawn a step, 0: none.
    specific: the teacher's own queries too. foreground: see the module's head. stages: `all`, or the `last` of each."""

    weight_class: Weight = 1.0
    weight_box: Weight = 5.0
    weight_giou: Weight = 2.0
    general: Annotated[int, Field(ge=0)] = 300
    specific: bool = True
    foreground: bool = True
    stages: Depth = "all"


class KDDETR(Method):
    """See the module's head. Its terms: `class`, `box`, `giou`."""

    name = "kddetr"
    group = "set predictions"
    paper = "arXiv:2211.08071"
    reads = "queries, decoder stages"
    gain = "DAB-DETR R50 42.2 to 45.7 (DAB-DETR R101)"
    Config = KDDETRConfig

    def __init__(self, config: KDDETRConfig, shared: SharedClasses, parts: frozenset[QueryPart]):
        """parts: of queries that the student's decoder reads."""
        super().__init__()
        self.config, self.shared, self.parts = config, shared, parts
        self.need = Need(queries=True, predictions=config.specific)
        self.student_need = Need(queries=True)

    @classmethod
    def build(cls, config: KDDETRConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError unless both have queries of one form and share a class."""
        require_queries(cls.name, student, teacher)
        weighs = config.weight_class or config.weight_box or config.weight_giou
        require(bool(weighs), cls.name, "all its weights are 0", "see the options of methods.kddetr")
        require(
            config.general > 0 or config.specific,
            cls.name,
            "no points at all",
            "set methods.kddetr.general to 300 or specific to true",
        )
        require_width(
            cls.name,
            student,
            teacher,
            "take a teacher of the student's family, or detrdistill without its assignment part",
        )
        return cls(config, SharedClasses.between(cls.name, student, teacher), required(student.queries).parts)

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        guess, taught = required(student_output.queries), required(teacher_output.queries)
        groups = (
            [(guess.redecode(handed_over(taught.own, self.parts)), teacher_output.stages)]
            if self.config.specific
            else []
        )
        if self.config.general:
            points = taught.sample(self.config.general, _generator(state))
            with torch.no_grad():
                answers = taught.redecode(points)
            groups.append((guess.redecode(handed_over(points, self.parts)), answers))
        sizes, found = teacher_output.pyramids["neck"].sizes, []
        for mine, theirs in groups:
            for own, other in stage_places(len(mine), len(theirs), self.config.stages):
                found.append(
                    self.distances(self.shared.of_student(mine[own]), self.shared.of_teacher(theirs[other]), sizes)
                )
        return {name: torch.stack([terms[name] for terms in found]).sum() for name in found[0]}

    def distances(self, student: Predictions, teacher: Predictions, sizes: Tensor) -> dict[str, Tensor]:
        """The weighted terms of one stage, (): row n of the one against row n of the other. sizes (B, 2): of the images."""
        config = self.config
        trust = (
            teacher.scores().detach().amax(-1) if config.foreground else torch.ones_like(teacher.boxes[..., 0])
        )  # (B, P)
        shares = trust / mean_over_processes(trust.sum(), floor=1e-6)
        mine, theirs = (to_relative(boxes.float(), sizes) for boxes in (student.boxes, teacher.boxes.detach()))
        weights, scores = (config.weight_class, config.weight_box, config.weight_giou), class_scores(teacher, student)
        terms = answer_terms(student, mine, scores, theirs, weights, shares, shares)
        if config.weight_class:  # the cross-entropy less its minimum is the divergence
            entropy = (soft_class_entropy(scores, student.activation) * shares).sum()
            terms["class"] = terms["class"] - config.weight_class * entropy
        return terms


def _generator(state: TrainState) -> torch.Generator:
    """The run's, or one seeded by torch's own."""
    if state.generator is not None:
        return state.generator
    return torch.Generator().manual_seed(int(torch.randint(2**31, ())))
