"""PKD: Pearson correlation of neck features. Cao et al., NeurIPS 2022, arXiv:2207.02039.

    L = weight * sum over levels of 1/2 mean (S^ - T^)^2,    X^ = (X - mean) / (deviation + 1e-6)

S and T are the student's and the teacher's map. The mean and the unbiased standard deviation are per channel, over the
batch and all cells. A level's term is therefore the mean over channels of (m - 1)/m * (1 - r), where r is the Pearson
correlation over the m positions (all cells of the batch). The method reads no head, no boxes and no classes, so any
teacher can teach any student with a level of equal stride.

Published code:
- It pairs levels by position (`pairing: index`). With a two-stage teacher, it compares the student's stride 8 with the
  teacher's stride 4.
- It leaves out the fifth level (`levels: 4`).
- Its weight is 6 with a two-stage teacher and 10 with a one-stage teacher.
- Together with CrossKD, the published weights are 6 (GFL), 2 (RetinaNet), 2 (FCOS) and 1 (ATSS), on all levels.
- It requires equal channel counts. Here, if they differ, a 1x1 convolution on the student's levels is learned.

Ablations:
- `distance: mse` leaves out the standardization and changes nothing else: half the mean squared difference.
- `pyramid: towers` compares both towers of dense heads instead of the neck, after `depth` convolutions and the
  activation, as in the CrossKD paper (arXiv:2306.11369).
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
    """weight: weight of each level's term.
    least_positions: a level with fewer cells than this in the batch is left out, because its correlation is noise.
    distance: `pearson`, or as an ablation `mse`: half the mean squared difference, without standardization.
    depth: with `pyramid: towers`, the number of tower convolutions; negative: counted from the end of each tower.
    The other options: see `LevelConfig`.
    """

    weight: Weight = 6.0
    least_positions: Annotated[int, Field(ge=2)] = 16
    distance: Literal["pearson", "mse"] = "pearson"
    depth: int = -1


class PKD(Method):
    """See the module docstring. Terms: `features`."""

    name = "pkd"
    group = "neck features"
    paper = "arXiv:2207.02039"
    copies = "neck features, up to mean and scale of each channel"
    requires = "a level with the same stride on both sides; with `pyramid: towers`, dense heads"
    reads = "neck features"
    learns = "a 1x1 convolution per level, only if the channel counts differ"
    gain = "RetinaNet R50 37.4 to 40.8 (RetinaNet X101)"
    unlabeled = True
    Config = PKDConfig

    def __init__(self, config: PKDConfig, levels: PairedLevels | PairedTowers):
        super().__init__()
        self.config, self.levels = config, levels
        self.need, self.student_need = levels.need, levels.student_need

    @classmethod
    def build(cls, config: PKDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError if no level can be paired, or if `pyramid` is `towers` and a detector has no towers."""
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
        """See `Method.forward`. Raises UserError if every level has fewer than `least_positions` cells."""
        levels = self.levels(student_output, teacher_output)
        distance = pearson_distance if self.config.distance == "pearson" else half_mean_square
        terms = [
            distance(level.student, level.teacher)
            for level in levels
            if level.student[:, 0].numel() >= self.config.least_positions
        ]
        if not terms:  # an error, because a term of 0 would silently turn the distillation off
            cells = ", ".join(str(level.student[:, 0].numel()) for level in levels)
            remedy = "use larger images or batches, finer --model.strides, or a smaller methods.pkd.least_positions"
            raise UserError(
                f"method pkd: every paired level is too small to correlate ({cells} cells in the batch); {remedy}"
            )
        return {"features": self.config.weight * torch.stack(terms).sum()}


def half_mean_square(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns half the mean squared difference of two maps, (): `pearson_distance` without standardization."""
    return hint_distance(student, teacher) / 2
