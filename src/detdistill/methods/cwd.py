"""CWD: channel-wise distillation. Shu et al., ICCV 2021, arXiv:2011.13256.

    L = weight * sum over levels of T^2 mean over images and channels of KL(softmax(t / T) || softmax(s / T))

t and s are the teacher's and the student's map, T is the temperature. The softmax is over the cells of a channel. On
the neck the method reads no head, no boxes and no classes. On the class logits (`on: logits`) a channel is one class of
one anchor, both detectors must predict in the same cells, and only shared classes are compared.

Published code:
- The original detection code (`variant: original`) uses the cross-entropy, with T = 1 and weight 5 on the first four
  levels. The cross-entropy has the same gradient, but its minimum is the teacher's entropy instead of 0. This variant
  is the default, because the published number was obtained with it.
- mmrazor 1.x (`variant: mmrazor`) uses the KL with weight 10 on all five levels.
- mmrazor 0.3.1 reported 41.9 AP for GFL, on the class logits with T = 1 and weight 5. Here this is `on: logits`. Its
  later configuration of the same name distills the neck.
- The original learns a 1x1 convolution if the channel counts differ, as here.
- In both codes the softmax is over the whole map, including the padding, as here.

The weights are in `methods.presets`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from detdistill.losses import channel_wise
from detdistill.methods.method import Method, Temperature, Weight
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.levels import LevelConfig, PairedLevels
from detdistill.methods.shared.predictions import require_same_cells
from detdistill.types import DetectorInfo, DetectorOutput, Need, Predictions, Targets, TrainState, required


@dataclass(frozen=True)
class CWDConfig(LevelConfig):
    """Options of CWD.

    levels: number of neck level pairs or of logit levels to compare, starting at the finest; none: all.
    weight: weight of each level's term.
    temperature: temperature of both softmaxes.
    on: `neck`: the maps of the neck; `logits`: the class logits, if both detectors predict in the same cells.
    variant: `original`: cross-entropy, as in the original code; `mmrazor`: KL, as in mmrazor.
    The other options apply to the neck only: see `LevelConfig`.
    """

    levels: Annotated[int, Field(ge=1)] | None = 4
    weight: Weight = 5.0
    temperature: Temperature = 1.0
    on: Literal["neck", "logits"] = "neck"
    variant: Literal["original", "mmrazor"] = "original"


class CWD(Method):
    """See the module docstring. Terms: `features`, or `class` on the logits."""

    name = "cwd"
    group = "neck features"
    paper = "arXiv:2011.13256"
    copies = "neck features or class maps, each channel as a distribution over the cells"
    requires = "a level with the same stride on both sides; for class maps, dense heads with the same cells and anchors"
    reads = "neck features, or class logits"
    learns = "a 1x1 convolution per level, only if the channel counts differ"
    gain = "RetinaNet R50 37.4 to 40.5 (RetinaNet X101)"
    unlabeled = True
    Config = CWDConfig

    def __init__(self, config: CWDConfig, levels: PairedLevels | None, shared: SharedClasses | None):
        """levels: pairs of the neck, or None on the logits. shared: classes of the logits, or None on the neck."""
        super().__init__()
        self.config, self.levels, self.shared = config, levels, shared
        self.need = self.student_need = Need(predictions=True) if levels is None else levels.need

    @classmethod
    def build(cls, config: CWDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError if no level can be paired, or for the logits, if the cells differ or no class is shared."""
        if config.on == "neck":
            return cls(config, PairedLevels.build(cls.name, config, student, teacher), None)
        require_same_cells(cls.name, student, teacher)
        return cls(config, None, SharedClasses.between(cls.name, student, teacher))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        cross_entropy = self.config.variant == "original"
        terms = [
            channel_wise(student_level, teacher_level, self.config.temperature, cross_entropy)
            for student_level, teacher_level in self._pairs(student_output, teacher_output)
        ]
        part = "class" if self.levels is None else "features"
        return {part: self.config.weight * torch.stack(terms).sum()}

    def _pairs(self, student_output: DetectorOutput, teacher_output: DetectorOutput) -> list[tuple[Tensor, Tensor]]:
        """The maps (B, C, H, W) of student and teacher to compare, fine to coarse."""
        if self.levels is not None:
            return [(level.student, level.teacher) for level in self.levels(student_output, teacher_output)]
        shared = required(self.shared)
        student_maps = logit_maps(shared.of_student(student_output.stages[-1]))
        teacher_maps = logit_maps(shared.of_teacher(teacher_output.stages[-1]))
        return list(zip(student_maps, teacher_maps, strict=True))[: self.config.levels]


def logit_maps(predictions: Predictions) -> list[Tensor]:
    """The class logits (B, N, K) of a dense head as one map (B, A K, H, W) per level."""
    levels = required(predictions.layout).split(predictions.logits)  # each (B, H, W, A, K)
    return [level.flatten(3).permute(0, 3, 1, 2) for level in levels]  # -> (B, H, W, A K) -> (B, A K, H, W)
