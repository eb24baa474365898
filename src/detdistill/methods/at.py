"""Attention transfer: imitation of attention maps. Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928.

    L = weight * sum over levels of mean over images and cells of (Q_s - Q_t)^2
    Q = q / |q|,    q = mean over channels of F^2

F is a map of the student or the teacher. The method reads no head. It has no learned part, because an attention map Q
has no channels. If the two maps of a pair differ in size (`pairing: index`), the larger map is average-pooled to the
size of the smaller. Any teacher can teach any student with a level of equal stride.

Paper and published code (`form`): the paper uses weight/2 times the norm |Q_s - Q_t|. The published code uses the mean
of squares, and the weight of 1000 belongs to this form. We could not verify a weight for the norm, so `form: paper`
needs an explicit weight. A weight of 2 makes a level's term equal to the norm.

The method was published for classifiers, with maps of 32x32, 16x16 and 8x8 cells. Because of the mean over cells, a
term falls as 1 / (H W), and the finest levels of a detector, with ten thousand cells, contribute almost nothing.
`scale_by_area` is our addition. It multiplies a term by H W / 256. A weight then has the same effect on every level
and image size as on the published 16x16 map.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from detdistill.losses import attention_norm, attention_transfer
from detdistill.methods.method import Method, Weight, require
from detdistill.methods.shared.levels import LevelConfig, Strides, level_at, pair_levels
from detdistill.types import DetectorInfo, DetectorOutput, Need, Targets, TrainState

PUBLISHED_CELLS = 256  # cells of the middle one of the three published maps, 16x16


@dataclass(frozen=True)
class AttentionTransferConfig:
    """weight: weight of each level's term; none: 1000, with `form: code` only.
    form: `code`: the mean of squares, as in the published code; `paper`: half the norm, with a weight that you set.
    scale_by_area: multiply each level's term by its number of cells / 256, so that a weight has the same effect on
        every level; with `form: code` only.
    levels: number of level pairs to compare, starting at the finest; none: all.
    pairing: `stride` pairs levels of equal stride; `index` pairs levels of equal position.
    pyramid: name of the pyramid to compare, such as `neck` or `memory`.
    """

    weight: Weight | None = None
    form: Literal["code", "paper"] = "code"
    scale_by_area: bool = False
    levels: Annotated[int, Field(ge=1)] | None = None
    pairing: Literal["stride", "index"] = "stride"
    pyramid: str = "neck"


class AttentionTransfer(Method):
    """See the module docstring. Terms: `attention`."""

    name = "at"
    group = "neck features"
    paper = "arXiv:1612.03928"
    copies = "where the neck features are strong, without their channels"
    requires = "a level with the same stride on both sides"
    reads = "neck features"
    unlabeled = True
    Config = AttentionTransferConfig

    def __init__(self, config: AttentionTransferConfig, strides: list[Strides]):
        super().__init__()
        self.config, self.strides = config, strides
        self.weight = 1000.0 if config.weight is None else config.weight
        self.need = self.student_need = Need(pyramids=frozenset({config.pyramid}))

    @classmethod
    def build(cls, config: AttentionTransferConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError if no level can be paired, or if `form: paper` has no weight or has `scale_by_area`."""
        if config.form == "paper":
            problem = "there is no published weight for methods.at.form=paper"
            require(config.weight is not None, cls.name, problem, "set methods.at.weight (2 gives the norm itself)")
            problem = "methods.at.scale_by_area corrects the mean over cells, but methods.at.form=paper takes no mean"
            require(not config.scale_by_area, cls.name, problem, "leave out one of the two options")
        levels = LevelConfig(levels=config.levels, pairing=config.pairing, pyramid=config.pyramid)
        return cls(config, pair_levels(cls.name, levels, student, teacher))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        student_pyramid = student_output.pyramids[self.config.pyramid]
        teacher_pyramid = teacher_output.pyramids[self.config.pyramid]
        terms = [
            self._term(level_at(student_pyramid, student_stride), level_at(teacher_pyramid, teacher_stride))
            for student_stride, teacher_stride in self.strides
        ]
        return {"attention": self.weight * torch.stack(terms).sum()}

    def _term(self, student_level: Tensor, teacher_level: Tensor) -> Tensor:
        """Returns the unweighted term () of one pair of maps (B, C, H, W) and (B, D, H', W')."""
        if self.config.form == "paper":
            return attention_norm(student_level, teacher_level) / 2
        rows = min(student_level.shape[-2], teacher_level.shape[-2])
        columns = min(student_level.shape[-1], teacher_level.shape[-1])
        scale = rows * columns / PUBLISHED_CELLS if self.config.scale_by_area else 1.0
        return scale * attention_transfer(student_level, teacher_level)
