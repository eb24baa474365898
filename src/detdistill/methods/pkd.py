"""PKD: Pearson correlation of neck features. Cao et al., NeurIPS 2022, arXiv:2207.02039.

    L = weight * sum over levels of 1/2 mean (S^ - T^)^2,    X^ = (X - mean) / (deviation + 1e-6)

mean and unbiased deviation of each channel over batch and cells, so that a level's term is 1 - r up to (m - 1)/m. It reads no head, no box
and no class: any teacher can teach any student that has a level of the same stride.

Code and paper: the published code pairs levels by their place in the list (`pairing: index`: with a two-stage teacher the student's stride 8
meets the teacher's stride 4) and leaves out a fifth level (`levels: 4`); its weight is 6 with a two-stage teacher and 10 with a one-stage one.
With CrossKD the published weights are 6, 2, 2, 1 for GFL, RetinaNet, FCOS, ATSS, on all levels. Widths must be equal there; here a 1x1
convolution on the student's levels is learned where they differ.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from detdistill.errors import UserError
from detdistill.losses import pearson_distance
from detdistill.methods.method import Method, Weight, levels_at, paired_strides, require
from detdistill.types import DetectorInfo, DetectorOutput, Need, Targets


@dataclass(frozen=True)
class PKDConfig:
    """weight: of each level's term. levels: how many of the paired levels, from the finest; none: all. pairing: `stride`, or `index` as in the
    published code. resize: which side is resized, bilinearly, where sizes differ. pyramid: which maps are compared.
    least_positions: levels with fewer cells than this in the whole batch are left out, their correlation is noise."""

    weight: Weight = 6.0
    levels: Annotated[int, Field(ge=1)] | None = None
    pairing: Literal["stride", "index"] = "stride"
    resize: Literal["student", "teacher"] = "student"
    pyramid: str = "neck"
    least_positions: Annotated[int, Field(ge=2)] = 16


class PKD(Method):
    """See the module's head. Its term: `features`."""

    name = "pkd"
    paper = "arXiv:2207.02039"
    reads = "neck features"
    learns = "a 1x1 convolution a level, only where the widths differ"
    Config = PKDConfig

    def __init__(self, config: PKDConfig, strides: list[tuple[int, int]], student_width: int, teacher_width: int):
        """strides: (student, teacher) of each pair of levels."""
        super().__init__()
        self.config = config
        self.student_strides = [mine for mine, _ in strides]
        self.teacher_strides = [theirs for _, theirs in strides]
        same = student_width == teacher_width
        self.connectors = nn.ModuleList(nn.Identity() if same else nn.Conv2d(student_width, teacher_width, 1) for _ in strides)
        self.need = self.student_need = Need(pyramids=frozenset({config.pyramid}))

    @classmethod
    def build(cls, config: PKDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError where no level can be paired."""
        for side, info in (("student", student), ("teacher", teacher)):
            have = f"the {side} has {', '.join(info.channels)}"
            require(config.pyramid in info.channels, cls.name, f"no pyramid {config.pyramid!r} on the {side}", have)
        if config.pairing == "index":
            pairs = list(zip(student.strides, teacher.strides, strict=False))  # as many as both have: the published pairing
        else:
            pairs = [(stride, stride) for stride in paired_strides(cls.name, student, teacher)]
        return cls(config, pairs[: config.levels], student.channels[config.pyramid], teacher.channels[config.pyramid])

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, targets: Targets) -> dict[str, Tensor]:
        """See `Method.forward`."""
        mine = levels_at(student.pyramids[self.config.pyramid], self.student_strides)
        theirs = levels_at(teacher.pyramids[self.config.pyramid], self.teacher_strides)
        terms = []
        for connector, guess, taught in zip(self.connectors, mine, theirs, strict=True):
            guess = connector(guess)
            if guess.shape[-2:] != taught.shape[-2:]:
                guess, taught = self._resized(guess, taught)
            if guess[:, 0].numel() >= self.config.least_positions:
                terms.append(pearson_distance(guess, taught))
        if not terms:  # a distillation loss that is silently absent is the field's old failure
            cells = ", ".join(str(level[:, 0].numel()) for level in mine)
            remedy = "give larger images or batches, finer --model.strides, or a smaller methods.pkd.least_positions"
            raise UserError(f"method pkd: every paired level is too small to correlate ({cells} cells in the batch); {remedy}")
        return {"features": self.config.weight * torch.stack(terms).sum()}

    def _resized(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.resize == "student":
            return F.interpolate(student, teacher.shape[-2:], mode="bilinear", align_corners=False), teacher
        return student, F.interpolate(teacher, student.shape[-2:], mode="bilinear", align_corners=False)
