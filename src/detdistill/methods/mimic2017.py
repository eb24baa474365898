"""Mimic: features of proposals, not of whole maps. Li, Jin and Yan, CVPR 2017.

    L = weight * 1/(2 N) sum_i 1/m_i |u_i - r(v_i)|^2

u, v: RoIAligns, size x size, of the teacher's and the student's level at N proposals; r: a 1x1 convolution on the student's level; m: numbers in a
region. Background is seen only where a proposal is. N is averaged over processes.

Paper and port: there is no official code. The paper takes proposals of the student's RPN; SenseTime's port for FPN (United-Perception) the
teacher's (`proposals: teacher`). With a two-stage student they are those its loss was sampled on, with a two-stage teacher its best ones. A box goes to
the level that its size gives; the port takes strides 4 to 32, here all paired levels serve (`levels`).

Ours: a one-stage or set-based detector proposes the boxes it predicts, best class score first, after suppression at IoU `overlap`, cut at the image.
The paper trains in two steps, RPN first, and has a student on smaller images with a deconvolution; here all is trained at once on one size.
The weight is ours too: 1, as the paper's could not be verified.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from detdistill.distributed import mean_over_processes
from detdistill.geometry import general_instances, pool_rois
from detdistill.losses import region_distance
from detdistill.methods.method import Method, Weight
from detdistill.methods.shared.levels import LevelConfig, PairedLevels, always
from detdistill.types import DetectorInfo, DetectorOutput, Need, Targets, TrainState


@dataclass(frozen=True)
class Mimic2017Config(LevelConfig):
    """proposals: whose. most: of an image, the best. size: cells of a region's side. overlap: IoU above which the worse of two predicted boxes is
    no proposal; two-stage detectors have suppressed theirs. The others: see `methods.shared.levels.LevelConfig`."""

    weight: Weight = 1.0
    proposals: Literal["student", "teacher"] = "student"
    most: Annotated[int, Field(ge=1)] = 512
    size: Annotated[int, Field(ge=1)] = 7
    overlap: Annotated[float, Field(gt=0, le=1)] = 0.7


class Mimic2017(Method):
    """See the module's head. Its term: `regions`."""

    name = "mimic2017"
    group = "instances"
    paper = "CVPR 2017, Li, Jin and Yan"
    reads = "neck features, proposals"
    learns = "a 1x1 convolution a level"
    Config = Mimic2017Config

    def __init__(self, config: Mimic2017Config, levels: PairedLevels, proposer: DetectorInfo):
        super().__init__()
        self.config, self.levels = config, levels
        proposing = Need(proposals=True) if proposer.proposals is not None else Need(predictions=True)
        from_student = config.proposals == "student"
        self.need = levels.need if from_student else levels.need | proposing
        self.student_need = levels.need | proposing if from_student else levels.need

    @classmethod
    def build(cls, config: Mimic2017Config, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError where no level can be paired."""
        levels = PairedLevels.build(cls.name, config, student, teacher, always)
        return cls(config, levels, student if config.proposals == "student" else teacher)

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        boxes = self._proposals(student_output if self.config.proposals == "student" else teacher_output)
        levels = self.levels(student_output, teacher_output)
        strides = [level.stride for level in levels]
        sides = [level.student for level in levels], [level.teacher for level in levels]
        guess, taught = (pool_rois(maps, strides, boxes, self.config.size) for maps in sides)
        count = mean_over_processes(guess.new_tensor(float(len(guess))))
        return {"regions": self.config.weight * region_distance(guess, taught).sum() / (2 * count)}

    @torch.no_grad()
    def _proposals(self, output: DetectorOutput) -> list[Tensor]:
        """Boxes (n_i, 4) of each image, n_i <= most, best first."""
        if output.proposals is not None:
            proposals = output.proposals
            return [
                boxes[valid][: self.config.most] for boxes, valid in zip(proposals.boxes, proposals.valid, strict=True)
            ]
        stage, sizes = output.stages[-1], output.pyramids["neck"].sizes
        boxes, chosen = general_instances(
            stage.scores().amax(-1), stage.boxes, stage.valid, sizes, self.config.most, self.config.overlap
        )
        return [own[rows] for own, rows in zip(boxes, chosen, strict=True)]
