"""Localisation distributions of a larger D-FINE: GO-LSD's divergence between two models. Peng et al., ICLR 2025, arXiv:2410.13842.

    L = weight * sum over student stages of  (a mean over M of w d + b mean over U of w d) / (a + b),   a, b = sqrt(|M| / B), sqrt(|U| / B)
    d = T^2 KL(softmax(e_t / T) || softmax(e_s / T))  of each of the four sides of a box, R bins, as LD's (arXiv:2102.12252)
    w = IoU of the student's box with its ground truth in M, the teacher's best class score in U

M: sides of the student's queries that its own assignment gave a ground truth, U: of the others. In a D-FINE the last layer teaches the earlier ones
like this, query by query; here the teacher's last stage teaches every student stage, its queries paired at least cost (class + 5 L1 - 2 GIoU).
T is 5 and the weight 1.5, those of the self-distillation, which stays as it is. Minimum 0.

Ours: it is published within one model only. Distances are told from the boxes that the first layer proposes, each model from its own, so that two
queries of one object say nearly, not exactly, the same with one distribution. Bins must mean the same: equal number, `up` and `reg_scale`.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detdistill.distributed import mean_over_processes
from detdistill.losses import edge_kl, paired_iou
from detdistill.methods.method import Method, Temperature, Weight, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.queries import StagePair, pair_stages, require_queries
from detdistill.types import DetectorInfo, DetectorOutput, Need, Targets, TrainState, required


@dataclass(frozen=True)
class GOLSDConfig:
    """weight: of the sum over stages. temperature: T."""

    weight: Weight = 1.5
    temperature: Temperature = 5.0


class GOLSD(Method):
    """See the module's head. Its term: `edges`."""

    name = "go_lsd"
    group = "set predictions"
    paper = "arXiv:2410.13842"
    reads = "side distributions and scores of decoder stages"
    Config = GOLSDConfig

    def __init__(self, config: GOLSDConfig, shared: SharedClasses):
        super().__init__()
        self.config, self.shared = config, shared
        self.need = Need(predictions=True)

    @classmethod
    def build(cls, config: GOLSDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError unless both predict equal side distributions by queries."""
        require_queries(cls.name, student, teacher)
        for side, info in (("student", student), ("teacher", teacher)):
            require(
                info.edges is not None,
                cls.name,
                f"the {side} ({info.kind}) has no side distributions",
                "take d_fine for both",
            )
        mine, theirs = required(student.edges), required(teacher.edges)
        codes = f"the student has {mine.bins} bins of code {mine.code}, the teacher {theirs.bins} of {theirs.code}"
        require(
            mine == theirs,
            cls.name,
            codes,
            "a bin must mean the same distance to both; take a teacher with the student's",
        )
        return cls(config, SharedClasses.between(cls.name, student, teacher))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        mine = [self.shared.of_student(stage) for stage in student_output.stages]
        theirs = [self.shared.of_teacher(teacher_output.stages[-1])]
        pairs = pair_stages(
            mine, theirs, [(stage, 0) for stage in range(len(mine))], teacher_output.pyramids["neck"].sizes
        )
        return {"edges": self.config.weight * torch.stack([self.distance(pair, targets) for pair in pairs]).sum()}

    def distance(self, pair: StagePair, targets: Targets) -> Tensor:
        """The two means of one stage, weighed, ()."""
        assignment, images = required(pair.student.assignment), len(pair.partner)
        truths = pad_sequence(
            [torch.cat([boxes, boxes.new_zeros(1, 4)]) for boxes in targets.boxes], batch_first=True
        )  # the last is no box
        own = truths.gather(1, assignment.matched.clamp(min=0)[..., None].expand(-1, -1, 4))
        overlap = paired_iou(pair.student.boxes.detach(), own)
        best = pair.of_partner(pair.teacher.scores().detach().amax(-1))
        taught = pair.of_partner(required(pair.teacher.edges).detach())
        distances = edge_kl(required(pair.student.edges), taught, self.config.temperature).mean(
            -1
        )  # (B, Q), mean over the four sides
        means, roots = [], []
        for group, weight in ((assignment.positive, overlap), (~assignment.positive, best)):
            rows = pair.paired & group
            count = mean_over_processes(rows.sum().float())
            means.append((distances * weight * rows).sum() / count)
            roots.append((4 * mean_over_processes(rows.sum().float(), floor=0.0) / images).sqrt())
        return (means[0] * roots[0] + means[1] * roots[1]) / (roots[0] + roots[1]).clamp(min=1e-9)
