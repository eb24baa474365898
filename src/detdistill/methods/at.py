"""Attention transfer: where the neck's levels are strong. Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928.

    L = weight * sum over levels of mean over images and cells of (Q_s - Q_t)^2,    Q = q / |q|,  q = mean over channels of F^2

It reads no head and learns nothing: a map has no channels. Where a level's sizes differ (`pairing: index`), the larger is average-pooled to the
smaller. Any teacher can teach any student that has a level of the same stride.

Code and paper (`form`): the paper takes weight/2 times the norm |Q_s - Q_t|, the published code the mean of squares, to which the weight of
1000 belongs. No weight that we could verify goes with the norm; with `paper` it must be given, and 2 makes a level's term the norm itself.

Published for classifiers, with maps of 32 x 32, 16 x 16 and 8 x 8. The mean over cells makes a term fall as 1 / (H W): a detector's finest
levels, with ten thousand cells, count next to nothing. `scale_by_area`, which is ours, multiplies it by H W / 256, so that every level
and every image size has the strength of the published 16 x 16.
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

PUBLISHED_CELLS = 256  # of the middle one of the maps that the weight was published on


@dataclass(frozen=True)
class AttentionTransferConfig:
    """weight: of each level's term; none: 1000, with form `code`. form, scale_by_area: see the module's head. levels, pairing, pyramid: as in
    `methods.shared.levels.LevelConfig`."""

    weight: Weight | None = None
    form: Literal["code", "paper"] = "code"
    scale_by_area: bool = False
    levels: Annotated[int, Field(ge=1)] | None = None
    pairing: Literal["stride", "index"] = "stride"
    pyramid: str = "neck"


class AttentionTransfer(Method):
    """See the module's head. Its term: `attention`."""

    name = "at"
    group = "neck features"
    paper = "arXiv:1612.03928"
    reads = "neck features"
    Config = AttentionTransferConfig

    def __init__(self, config: AttentionTransferConfig, strides: list[Strides]):
        super().__init__()
        self.config, self.strides = config, strides
        self.weight = 1000.0 if config.weight is None else config.weight
        self.need = self.student_need = Need(pyramids=frozenset({config.pyramid}))

    @classmethod
    def build(cls, config: AttentionTransferConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError where no level can be paired, or where options don't go together."""
        lacking = "form `paper` has no published weight of its own"
        require(
            config.form == "code" or config.weight is not None,
            cls.name,
            lacking,
            "give methods.at.weight: 2 is the norm itself",
        )
        lacking = "scale_by_area mends the mean over cells, form `paper` has none"
        require(config.form == "code" or not config.scale_by_area, cls.name, lacking, "leave one of the two")
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
        guess, taught = student_output.pyramids[self.config.pyramid], teacher_output.pyramids[self.config.pyramid]
        terms = [self._term(level_at(guess, mine), level_at(taught, theirs)) for mine, theirs in self.strides]
        return {"attention": self.weight * torch.stack(terms).sum()}

    def _term(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.config.form == "paper":
            return attention_norm(student, teacher) / 2
        rows, columns = (min(pair) for pair in zip(student.shape[-2:], teacher.shape[-2:], strict=True))
        scale = rows * columns / PUBLISHED_CELLS if self.config.scale_by_area else 1.0
        return scale * attention_transfer(student, teacher)
