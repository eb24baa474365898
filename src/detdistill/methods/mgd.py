"""MGD: masked generative distillation. Yang et al., ECCV 2022, arXiv:2205.01529.

    L = weight * sum over levels of  sum over cells and channels of (G(S m) - T)^2,  mean over images

m is a mask that drops each cell with probability `drop`, in all channels. A new mask is drawn for each level and step.
Kept cells are not scaled up. G is a learned block per level: 3x3 convolution, ReLU, 3x3 convolution. The method reads
no head, no boxes and no classes. Its minimum is not known in advance, because G is not the identity and its input does
not contain the dropped cells.

Paper and published code agree, except that the code leaves the teacher's normalization layers in training mode. Here a
teacher is always in evaluation mode. The published options are weight 2e-5 and drop 0.65 with one-stage heads, and
weight 5e-7 and drop 0.45 with two-stage heads (`methods.presets`). A 1x1 convolution before the mask is learned if the
channel counts differ, as published.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from detdistill.losses import masked_generation
from detdistill.methods.method import Method, Weight
from detdistill.methods.shared.levels import LevelConfig, PairedLevels, pair_widths
from detdistill.types import DetectorInfo, DetectorOutput, Targets, TrainState


@dataclass(frozen=True)
class MGDConfig(LevelConfig):
    """weight: weight of each level's term.
    drop: fraction of the cells that are dropped, in 0..1.
    The other options: see `LevelConfig`.
    """

    weight: Weight = 2e-5
    drop: Annotated[float, Field(ge=0, le=1)] = 0.65


class MGD(Method):
    """See the module docstring. Terms: `features`."""

    name = "mgd"
    group = "neck features"
    paper = "arXiv:2205.01529"
    copies = "neck features, reconstructed from masked features"
    requires = "a level with the same stride on both sides"
    reads = "neck features"
    learns = "two 3x3 convolutions per level; a 1x1 convolution per level if the channel counts differ"
    gain = "RetinaNet R50 37.4 to 41.0 (RetinaNet X101)"
    unlabeled = True
    Config = MGDConfig

    def __init__(self, config: MGDConfig, levels: PairedLevels, channels: Sequence[int]):
        """channels: of the teacher's levels, which the student's maps also have after the connectors."""
        super().__init__()
        self.config, self.levels = config, levels
        self.need = self.student_need = levels.need
        self.generators = nn.ModuleList(generation_block(width) for width in channels)

    @classmethod
    def build(cls, config: MGDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError if no level can be paired."""
        levels = PairedLevels.build(cls.name, config, student, teacher)
        return cls(config, levels, [width for _, width in pair_widths(config, levels.strides, student, teacher)])

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
    """Returns G, which maps (B, C, H, W) to (B, C, H, W)."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
    )


def kept_cells(features: Tensor, drop: float, generator: torch.Generator | None) -> Tensor:
    """Returns a random mask (B, 1, H, W) for maps (B, C, H, W): 0 with probability `drop`, else 1.

    The mask is drawn on the generator's device, or on the maps' device if `generator` is None.
    """
    device = features.device if generator is None else generator.device
    values = torch.rand((len(features), 1, *features.shape[-2:]), generator=generator, device=device)
    return (values <= 1 - drop).to(features)
