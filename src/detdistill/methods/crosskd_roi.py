"""CrossKD for RoI heads: the student's pyramid through the teacher's RoI head. CVPR 2024, arXiv:2306.11369.

    p^ = the teacher's RoI head on the student's pyramid and the student's proposals
    p  = the teacher's RoI head on the teacher's pyramid and the student's proposals
    L  = the distances of `methods.shared.rois` between p^ and p

The gradient passes through the teacher's frozen head into the student's neck and backbone. The student's RoI head and
RPN learn from the labels only.

The paper (Wang et al.) describes dense heads. This method is the two-stage branch of the published code (Faster and
Mask R-CNN, together with PKD of weight 6). No result of this branch was published. Unlike the dense form it does not
align channel statistics. The code needs equal channel counts. Here a 1x1 convolution per level is learned if they
differ.
"""

from typing import Self

from torch import Tensor, nn

from detdistill.methods.method import Method, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.levels import level_at, when_channels_differ
from detdistill.methods.shared.rois import RoIConfig, crossed_rows, require_roi_heads, require_roi_terms, roi_terms
from detdistill.types import DetectorInfo, DetectorOutput, Need, Pyramid, Targets, TrainState, required


class CrossKDRoI(Method):
    """See the module docstring. Terms: `class`, `box`."""

    name = "crosskd_roi"
    group = "RoI heads"
    paper = "arXiv:2306.11369, its two-stage code"
    copies = "the teacher's classes and boxes on the student's proposals, through the teacher's own RoI head"
    requires = "RoI heads on both sides, pooled from levels that the student has"
    reads = "neck features, the teacher's RoI head on the student's proposals"
    learns = "a 1x1 convolution per level, only if the channel counts differ"
    Config = RoIConfig
    need = Need(classify=True)

    def __init__(self, config: RoIConfig, shared: SharedClasses, strides: tuple[int, ...], channels: tuple[int, int]):
        """strides: of the levels that the teacher pools regions from. channels: of the necks of student and teacher."""
        super().__init__()
        self.config, self.shared, self.strides = config, shared, strides
        self.connectors = nn.ModuleList(when_channels_differ(*channels) for _ in strides)

    @classmethod
    def build(cls, config: RoIConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """The method for a pair of two-stage detectors that share a class.

        Raises UserError if a detector has no RoI head, if no class is shared, if both weights are 0, or if the student
        lacks a level that the teacher pools regions from.
        """
        require_roi_heads(cls.name, student, teacher)
        # Both sides of the comparison come from the teacher's head.
        require_roi_terms(cls.name, config, teacher, teacher)
        strides = required(teacher.proposals).strides
        levels = f"the teacher pools regions from strides {strides}, the student's strides are {student.strides}"
        has_levels = set(strides) <= set(student.strides)
        require(has_levels, cls.name, levels, "give the student the teacher's --model.strides, or use proposal_kd")
        shared = SharedClasses.between(cls.name, student, teacher)
        return cls(config, shared, strides, (student.width(), teacher.width()))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        neck = student_output.pyramids["neck"]
        pairs = zip(self.strides, self.connectors, strict=True)
        levels = tuple(connector(level_at(neck, stride)) for stride, connector in pairs)
        crossed = Pyramid(levels, self.strides, neck.sizes)
        return roi_terms(crossed_rows(student_output, teacher_output, crossed, targets, self.shared), self.config)
