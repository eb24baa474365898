"""CWD: channel-wise distillation. Shu et al., ICCV 2021, arXiv:2011.13256.

    L = weight * sum over levels of  T^2 mean over images and channels of KL(softmax over cells of t / T || softmax over cells of s / T)

On the neck it reads no head, no box and no class. On the class logits (`on: logits`) a channel is an anchor's class, and both sides need the
same grid; classes are those both know.

Code and paper. The original detection code takes the cross-entropy (same gradient; a minimum of the teacher's entropy, not 0), T = 1 and weight
5, on the first four levels: `variant: original`, the default, as the published number is its own. mmrazor 1.x (`variant: mmrazor`) takes the KL,
weight 10 and all five levels. mmrazor's 41.9 for GFL was measured on the class logits, T = 1 and weight 5, in its version 0.3.1; its later
configuration of that name distils the neck: here `on: logits`. The weights stand in `methods.presets`. The original has a 1x1 convolution where
widths differ, as here. Softmaxes run over the whole map, padding included, as in both codes.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from detdistill.losses import channel_wise
from detdistill.methods.method import Method, Weight
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.levels import LevelConfig, PairedLevels
from detdistill.methods.shared.predictions import require_same_cells
from detdistill.types import DetectorInfo, DetectorOutput, Need, Predictions, Targets, TrainState, required


@dataclass(frozen=True)
class CWDConfig(LevelConfig):
    """weight: of each level's term. temperature: of both softmaxes. on, variant: see the module's head. levels: of the neck's pairs or of the
    logits, from the finest; none: all. The others are of the neck alone: see `LevelConfig`."""

    levels: Annotated[int, Field(ge=1)] | None = 4
    weight: Weight = 5.0
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    on: Literal["neck", "logits"] = "neck"
    variant: Literal["original", "mmrazor"] = "original"


class CWD(Method):
    """See the module's head. Its term: `features`, or `class` on the logits."""

    name = "cwd"
    group = "neck features"
    paper = "arXiv:2011.13256"
    reads = "neck features, or class logits"
    learns = "a 1x1 convolution a level, only where the widths differ"
    gain = "RetinaNet R50 37.4 to 40.5 (RetinaNet X101)"
    Config = CWDConfig

    def __init__(self, config: CWDConfig, levels: PairedLevels | None, shared: SharedClasses | None):
        """levels: of the neck, or none, and then shared: the classes of the logits."""
        super().__init__()
        self.config, self.levels, self.shared = config, levels, shared
        self.need = self.student_need = Need(predictions=True) if levels is None else levels.need

    @classmethod
    def build(cls, config: CWDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError where no level can be paired, or the logits are not on one grid."""
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
            channel_wise(mine, theirs, self.config.temperature, cross_entropy)
            for mine, theirs in self._pairs(student_output, teacher_output)
        ]
        part = "class" if self.levels is None else "features"
        return {part: self.config.weight * torch.stack(terms).sum()}

    def _pairs(self, student_output: DetectorOutput, teacher_output: DetectorOutput) -> list[tuple[Tensor, Tensor]]:
        """The maps (B, C, H, W) to compare, fine to coarse."""
        if self.levels is not None:
            return [(level.student, level.teacher) for level in self.levels(student_output, teacher_output)]
        shared = required(self.shared)
        mine, theirs = shared.of_student(student_output.stages[-1]), shared.of_teacher(teacher_output.stages[-1])
        return list(zip(logit_maps(mine), logit_maps(theirs), strict=True))[: self.config.levels]


def logit_maps(predictions: Predictions) -> list[Tensor]:
    """Class logits (B, N, K) of a dense head as maps (B, A K, H, W), one a level."""
    return [level.flatten(3).permute(0, 3, 1, 2) for level in required(predictions.layout).split(predictions.logits)]
