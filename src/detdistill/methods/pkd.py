"""PKD: Pearson correlation of neck features. Cao et al., NeurIPS 2022, arXiv:2207.02039.

    L = weight * sum over levels of 1/2 mean (S^ - T^)^2,    X^ = (X - mean) / (deviation + 1e-6)

mean and unbiased deviation of each channel over batch and cells, so that a level's term is 1 - r up to (m - 1)/m. It reads no head, no box
and no class: any teacher can teach any student that has a level of the same stride.

Code and paper: the published code pairs levels by their place in the list (`pairing: index`: with a two-stage teacher the student's stride 8
meets the teacher's stride 4) and leaves out a fifth level (`levels: 4`); its weight is 6 with a two-stage teacher and 10 with a one-stage one.
With CrossKD the published weights are 6, 2, 2, 1 for GFL, RetinaNet, FCOS, ATSS, on all levels. Widths must be equal there; here a 1x1
convolution on the student's levels is learned where they differ.

Ablations. `distance: mse` leaves out the standardising and nothing else: half the mean squared difference. `pyramid: towers` compares both towers
of dense heads in the place of the neck, `depth` convolutions in, after the activation, as the paper of CrossKD does (arXiv:2306.11369).
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from detdistill.errors import UserError
from detdistill.losses import hint_distance, pearson_distance
from detdistill.methods.method import Method, Weight
from detdistill.methods.shared.levels import LevelConfig, PairedLevels
from detdistill.methods.shared.towers import PairedTowers
from detdistill.types import DetectorInfo, DetectorOutput, Targets, TrainState


@dataclass(frozen=True)
class PKDConfig(LevelConfig):
    """weight: of each level's term. least_positions: levels with fewer cells than this in the whole batch are left out, their correlation is
    noise. distance, and depth of `pyramid: towers` (negative: from each tower's end): see the module's head. The others: see
    `methods.shared.levels.LevelConfig`."""

    weight: Weight = 6.0
    least_positions: Annotated[int, Field(ge=2)] = 16
    distance: Literal["pearson", "mse"] = "pearson"
    depth: int = -1


def half_square(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared difference of two maps, (): `pearson_distance` without its standardising."""
    return hint_distance(student, teacher) / 2


class PKD(Method):
    """See the module's head. Its term: `features`."""

    name = "pkd"
    group = "neck features"
    paper = "arXiv:2207.02039"
    reads = "neck features"
    learns = "a 1x1 convolution a level, only where the widths differ"
    gain = "RetinaNet R50 37.4 to 40.8 (RetinaNet X101)"
    Config = PKDConfig

    def __init__(self, config: PKDConfig, levels: PairedLevels | PairedTowers):
        super().__init__()
        self.config, self.levels = config, levels
        self.need, self.student_need = levels.need, levels.student_need

    @classmethod
    def build(cls, config: PKDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError where no level can be paired, or there are no towers and `pyramid` asks for them."""
        if config.pyramid == "towers":
            return cls(config, PairedTowers.build(cls.name, config, config.depth, student, teacher))
        return cls(config, PairedLevels.build(cls.name, config, student, teacher))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        levels = self.levels(student_output, teacher_output)
        distance = pearson_distance if self.config.distance == "pearson" else half_square
        terms = [
            distance(level.student, level.teacher)
            for level in levels
            if level.student[:, 0].numel() >= self.config.least_positions
        ]
        if not terms:  # a distillation loss that is silently absent is the field's old failure
            cells = ", ".join(str(level.student[:, 0].numel()) for level in levels)
            remedy = "give larger images or batches, finer --model.strides, or a smaller methods.pkd.least_positions"
            raise UserError(
                f"method pkd: every paired level is too small to correlate ({cells} cells in the batch); {remedy}"
            )
        return {"features": self.config.weight * torch.stack(terms).sum()}
