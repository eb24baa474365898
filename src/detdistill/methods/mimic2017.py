"""Mimic: features of proposals instead of whole maps. Li, Jin and Yan, CVPR 2017.

    L = weight * 1/(2 N) sum_i 1/m_i |u_i - r(v_i)|^2

u and v are the RoIAlign features, size x size, of the teacher's and the student's level at N proposals. r is a 1x1
convolution on the student's level. m_i is the number of values in region i. Background is compared only where a
proposal covers it. N is averaged over processes.

Paper and port: there is no official code. The paper uses proposals of the student's RPN. SenseTime's port for FPN
(United-Perception) uses the teacher's (`proposals: teacher`). A two-stage student gives the proposals that its loss
sampled, a two-stage teacher its best proposals. The size of a box selects its level (`geometry.box_levels`). The port
uses strides 4 to 32; here all paired levels are used (`levels`).

The following choices are ours. A one-stage or set-based detector has no proposals, so its predicted boxes are used,
clipped to the image, in descending order of their best class score, after suppression at IoU `overlap`. The paper
trains in two steps, RPN first, and its student has smaller images and a deconvolution; here all parts are trained
together on one image size. The weight is 1, because we could not verify the paper's weight.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from detdistill.distributed import mean_over_processes
from detdistill.geometry import general_instances, pool_rois
from detdistill.losses import region_distance
from detdistill.methods.method import Method, Weight, require
from detdistill.methods.shared.levels import LevelConfig, PairedLevels, always
from detdistill.types import DetectorInfo, DetectorOutput, Need, Targets, TrainState


@dataclass(frozen=True)
class Mimic2017Config(LevelConfig):
    """weight: weight of the term.
    proposals: the detector that gives the proposals.
    most: maximum number of proposals per image; the best are kept.
    size: rows and columns of a pooled region.
    overlap: IoU above which suppression drops the predicted box with the lower score. Not used for two-stage detectors,
        which suppress their proposals themselves.
    The other options: see `methods.shared.levels.LevelConfig`.
    """

    weight: Weight = 1.0
    proposals: Literal["student", "teacher"] = "student"
    most: Annotated[int, Field(ge=1)] = 512
    size: Annotated[int, Field(ge=1)] = 7
    overlap: Annotated[float, Field(gt=0, le=1)] = 0.7


class Mimic2017(Method):
    """See the module docstring. Terms: `regions`."""

    name = "mimic2017"
    group = "instances"
    paper = "CVPR 2017, Li, Jin and Yan"
    copies = "the features of proposals"
    requires = "a level with the same stride on both sides"
    reads = "neck features, proposals"
    learns = "a 1x1 convolution per level"
    unlabeled = True
    Config = Mimic2017Config

    def __init__(self, config: Mimic2017Config, levels: PairedLevels, proposer: DetectorInfo):
        """proposer: the detector that gives the proposals."""
        super().__init__()
        self.config, self.levels = config, levels
        propose = Need(proposals=True) if proposer.proposals is not None else Need(predictions=True)
        from_student = config.proposals == "student"
        self.need = levels.need if from_student else levels.need | propose
        self.student_need = levels.need | propose if from_student else levels.need

    @classmethod
    def build(cls, config: Mimic2017Config, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError if no level can be paired, or if the detector that gives the proposals detects nothing."""
        proposer = student if config.proposals == "student" else teacher
        problem = f"the {config.proposals} ({proposer.kind}) detects nothing, so it has no proposals"
        other = "teacher" if config.proposals == "student" else "student"
        remedy = f"if the {other} is a detector, set methods.{cls.name}.proposals to {other}; otherwise use pkd or mgd"
        require(bool(proposer.classes), cls.name, problem, remedy)
        return cls(config, PairedLevels.build(cls.name, config, student, teacher, always), proposer)

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        proposals = self.proposals(student_output if self.config.proposals == "student" else teacher_output)
        levels = self.levels(student_output, teacher_output)
        strides = [level.stride for level in levels]
        student_levels, teacher_levels = [level.student for level in levels], [level.teacher for level in levels]
        student_regions = pool_rois(student_levels, strides, proposals, self.config.size)  # (n, C, size, size)
        teacher_regions = pool_rois(teacher_levels, strides, proposals, self.config.size)
        count = mean_over_processes(student_regions.new_tensor(float(len(student_regions))))
        return {"regions": self.config.weight * region_distance(student_regions, teacher_regions).sum() / (2 * count)}

    @torch.no_grad()
    def proposals(self, output: DetectorOutput) -> list[Tensor]:
        """Boxes (n, 4) per image, n <= most, best first."""
        if output.proposals is not None:
            boxes, valid = output.proposals.boxes, output.proposals.valid
            return [
                image_boxes[is_valid][: self.config.most] for image_boxes, is_valid in zip(boxes, valid, strict=True)
            ]
        stage, sizes = output.stages[-1], output.pyramids["neck"].sizes
        scores = stage.scores().amax(-1)  # (B, N, K) -> (B, N)
        boxes, rows = general_instances(scores, stage.boxes, stage.valid, sizes, self.config.most, self.config.overlap)
        return [image_boxes[index] for image_boxes, index in zip(boxes, rows, strict=True)]
