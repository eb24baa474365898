"""CrossKD for two-stage heads: the student's pyramid through the teacher's RoI head. Wang et al., CVPR 2024, arXiv:2306.11369.

    p^ = the teacher's RoI head on the student's pyramid,    p = the same head on the teacher's,    both on the student's proposals
    L  = distances of `methods.shared.rois` between p^ and p

Gradient goes through the teacher's frozen head into the student's neck and backbone; the student's RoI head and its RPN learn from the labels
alone. The paper is about dense heads; this is the two-stage branch of its published code (Faster and Mask R-CNN, beside PKD with weight 6), of
which no result is published. Unlike the dense form it doesn't align channel statistics. Equal widths are needed there; here a 1x1 convolution a
level is learned where they differ.
"""

from typing import Self

from torch import Tensor, nn

from detdistill.methods.method import Method, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.levels import level_at, when_widths_differ
from detdistill.methods.shared.rois import RoIConfig, crossed_rows, require_roi_heads, require_terms, roi_terms
from detdistill.types import DetectorInfo, DetectorOutput, Need, Pyramid, Targets, TrainState, required


class CrossKDRoI(Method):
    """See the module's head. Its terms: `class`, `box`."""

    name = "crosskd_roi"
    group = "RoI heads"
    paper = "arXiv:2306.11369, its two-stage code"
    reads = "neck features, the teacher's RoI head on the student's proposals"
    learns = "a 1x1 convolution a level, only where the widths differ"
    Config = RoIConfig
    need = Need(classify=True)

    def __init__(self, config: RoIConfig, shared: SharedClasses, strides: tuple[int, ...], widths: tuple[int, int]):
        """strides: of the levels that the teacher cuts RoIs from. widths: of the necks, (student, teacher)."""
        super().__init__()
        self.config, self.shared, self.strides = config, shared, strides
        self.connectors = nn.ModuleList(when_widths_differ(*widths) for _ in strides)

    @classmethod
    def build(cls, config: RoIConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError unless both have RoI heads, share a class, and the student has the levels that the teacher cuts RoIs from."""
        require_roi_heads(cls.name, student, teacher)
        require_terms(cls.name, config, teacher, teacher)  # both sides of the comparison come out of the teacher's head
        strides = required(teacher.proposals).strides
        levels = f"the teacher cuts RoIs from strides {strides}, the student's strides are {student.strides}"
        held = set(strides) <= set(student.strides)
        require(held, cls.name, levels, "give the student the teacher's --model.strides, or take proposal_kd")
        shared = SharedClasses.between(cls.name, student, teacher)
        return cls(config, shared, strides, (student.channels["neck"], teacher.channels["neck"]))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        neck = student_output.pyramids["neck"]
        levels = tuple(
            connect(level_at(neck, stride)) for stride, connect in zip(self.strides, self.connectors, strict=True)
        )
        crossed = Pyramid(levels, self.strides, neck.sizes)
        return roi_terms(crossed_rows(student_output, teacher_output, crossed, targets, self.shared), self.config)
