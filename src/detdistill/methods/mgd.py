"""MGD: masked generative distillation. Yang et al., ECCV 2022, arXiv:2205.01529.

    L = weight * sum over levels of  sum over cells and channels of (G(S m) - T)^2,  mean over images

m drops each cell with probability `drop`, anew for each level and step, all channels alike; what is kept is not scaled up. G is a learned block a
level: 3x3 convolution, ReLU, 3x3 convolution. It reads no head, no box and no class. It has no minimum that is known beforehand: G is not
the identity, and can't see what was dropped.

Code and paper agree but for the teacher, whose norms the code leaves in training mode; here a teacher is always in evaluation mode. Published:
weight 2e-5 and drop 0.65 with one-stage heads, 5e-7 and 0.45 with two-stage ones (`methods.presets`). A 1x1 convolution before the mask where
widths differ, as published.
"""

from dataclasses import dataclass
from typing import Annotated, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from detdistill.losses import masked_generation
from detdistill.methods.method import Method, Weight
from detdistill.methods.shared.levels import LevelConfig, PairedLevels
from detdistill.types import DetectorInfo, DetectorOutput, Targets, TrainState


@dataclass(frozen=True)
class MGDConfig(LevelConfig):
    """weight: of each level's term. drop: share of the cells that are dropped. The others: see `LevelConfig`."""

    weight: Weight = 2e-5
    drop: Annotated[float, Field(ge=0, le=1)] = 0.65


class MGD(Method):
    """See the module's head. Its term: `features`."""

    name = "mgd"
    group = "neck features"
    paper = "arXiv:2205.01529"
    reads = "neck features"
    learns = "two 3x3 convolutions a level; a 1x1 convolution a level where the widths differ"
    gain = "RetinaNet R50 37.4 to 41.0 (RetinaNet X101)"
    Config = MGDConfig

    def __init__(self, config: MGDConfig, levels: PairedLevels, width: int):
        """width: the teacher's, which all maps have behind the connectors."""
        super().__init__()
        self.config, self.levels = config, levels
        self.need = self.student_need = levels.need
        self.generators = nn.ModuleList(generation_block(width) for _ in levels.strides)

    @classmethod
    def build(cls, config: MGDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError where no level can be paired."""
        return cls(config, PairedLevels.build(cls.name, config, student, teacher), teacher.channels[config.pyramid])

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        terms = []
        for level in self.levels(student_output, teacher_output):
            mask = kept_cells(level.student, self.config.drop, state.generator)
            terms.append(masked_generation(level.student, level.teacher, self.generators[level.index], mask))
        return {"features": self.config.weight * torch.stack(terms).sum()}


def generation_block(channels: int) -> nn.Sequential:
    """G, on maps (B, C, H, W)."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
    )


def kept_cells(like: Tensor, drop: float, generator: torch.Generator | None) -> Tensor:
    """(B, 1, H, W) of 1 and, with probability `drop`, 0, for maps `like` (B, C, H, W). Drawn where the generator lives."""
    shape, device = (len(like), 1, *like.shape[-2:]), like.device if generator is None else generator.device
    drawn = torch.rand(shape, generator=generator, device=device)
    return (drawn <= 1 - drop).to(like)
