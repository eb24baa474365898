"""GO-LSD between two models: side distributions of a larger D-FINE. Peng et al., ICLR 2025, arXiv:2410.13842.

    L = weight * sum over student stages of  (a mean over M of w d + b mean over U of w d) / (a + b)
    a, b = sqrt(|M| / B), sqrt(|U| / B)
    d = T^2 KL(softmax(e_t / T) || softmax(e_s / T))  per side of a box, R bins, as in LD (arXiv:2102.12252)
    w = in M the IoU of the student's box with its ground truth, in U the teacher's best class score

M are the sides of the student queries that the student's own assignment assigns to a ground truth. U are the sides of
the other queries. B is the number of images. Within one D-FINE, the last layer teaches the earlier layers in this way,
query by query. Here the teacher's last stage teaches every student stage; its queries are paired with the lowest total
cost (class + 5 L1 - 2 GIoU). T is 5 and the weight is 1.5, as in the self-distillation, which stays unchanged. The
minimum is 0.

The paper uses GO-LSD within one model only; the use between two models is ours. Each model measures distances from the
boxes that its own first layer proposes. For the same object, equal distributions of two models therefore give almost,
but not exactly, the same box. A bin must stand for the same distance in both models, so the number of bins, `up` and
`reg_scale` must be equal.
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
    """weight: weight of the sum over stages.
    temperature: T.
    """

    weight: Weight = 1.5
    temperature: Temperature = 5.0


class GOLSD(Method):
    """See the module docstring. Terms: `edges`."""

    name = "go_lsd"
    group = "set predictions"
    paper = "arXiv:2410.13842"
    copies = "the distributions of side distances of paired queries"
    requires = "`d_fine` on both sides"
    reads = "side distributions and scores of decoder stages"
    Config = GOLSDConfig

    def __init__(self, config: GOLSDConfig, shared: SharedClasses):
        super().__init__()
        self.config, self.shared = config, shared
        self.need = Need(predictions=True)

    @classmethod
    def build(cls, config: GOLSDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError if a detector has no queries or no side distributions, if the bins differ, or if no class is
        shared."""
        require_queries(cls.name, student, teacher)
        for side, info in (("student", student), ("teacher", teacher)):
            problem = f"the {side} ({info.kind}) has no side distributions"
            require(info.edges is not None, cls.name, problem, "use d_fine for both")
        student_edges, teacher_edges = required(student.edges), required(teacher.edges)
        problem = f"the student has {student_edges.bins} bins of code {student_edges.code}, "
        problem += f"the teacher {teacher_edges.bins} bins of code {teacher_edges.code}"
        remedy = "a bin must mean the same distance in both: use a teacher with the student's bins"
        require(student_edges == teacher_edges, cls.name, problem, remedy)
        return cls(config, SharedClasses.between(cls.name, student, teacher))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        student_stages = [self.shared.of_student(stage) for stage in student_output.stages]
        teacher_stages = [self.shared.of_teacher(teacher_output.stages[-1])]
        indices = [(index, 0) for index in range(len(student_stages))]
        pairs = pair_stages(student_stages, teacher_stages, indices, teacher_output.pyramids["neck"].sizes)
        distances = [self.distance(pair, targets) for pair in pairs]
        return {"edges": self.config.weight * torch.stack(distances).sum()}

    def distance(self, pair: StagePair, targets: Targets) -> Tensor:
        """The weighted mean of M and U for one student stage, ()."""
        assignment, images = required(pair.student.assignment), len(pair.partner)
        # A row without area is added, so that images without ground truth have one to gather.
        truths = pad_sequence([torch.cat([boxes, boxes.new_zeros(1, 4)]) for boxes in targets.boxes], batch_first=True)
        index = assignment.matched.clamp(min=0)[..., None].expand(-1, -1, 4)  # (B, Q) -> (B, Q, 4)
        iou = paired_iou(pair.student.boxes.detach(), truths.gather(1, index))  # (B, G, 4) -> (B, Q)
        score = pair.of_partner(pair.teacher.scores().detach().amax(-1))  # (B, M, K) -> (B, Q)
        teacher_edges = pair.of_partner(required(pair.teacher.edges).detach())  # (B, M, 4, R) -> (B, Q, 4, R)
        distances = edge_kl(required(pair.student.edges), teacher_edges, self.config.temperature).mean(-1)  # (B, Q)
        means, roots = [], []
        for group, weight in ((assignment.positive, iou), (~assignment.positive, score)):
            rows = pair.has_partner & group
            count = mean_over_processes(rows.sum().float())
            means.append((distances * weight * rows).sum() / count)
            # A query has four sides. No floor: an empty group has the factor 0.
            roots.append((4 * mean_over_processes(rows.sum().float(), floor=0.0) / images).sqrt())
        return (means[0] * roots[0] + means[1] * roots[1]) / (roots[0] + roots[1]).clamp(min=1e-9)
