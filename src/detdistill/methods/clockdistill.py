"""CLoCKDistill: the encoder's memory, objects by their size. Lan and Tian, WACV 2026, arXiv:2502.10683.

    L = sum over levels of  a sum M (S - T)^2 + b sum N (S - T)^2,    sums over cells and channels, mean over images

S and T are the encoder's outputs. M of a cell is 1 / the cells of its box, of the smallest where several overlap, and 0 outside; N is 1 / the
cells outside all boxes, and 0 inside. Every box is drawn on every level. Minimum 0.

This is the paper's memory distillation alone. Its other half, decoders of both sides run on the same queries made from the ground truth, is not
here (kddetr runs both decoders on the same queries). a = 5e-5 and b = 1e-7 are the paper's, as others report them. That the sums run over channels,
rather than being means, is how we read them, after FGD, whose masks these are; so is what counts as a box's cells, see `geometry.focal_masks`,
in which padding takes no part. A 1x1 convolution where widths differ is ours, and `pyramid: neck`: maps before the encoder, or of detectors
without one.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from detdistill.geometry import focal_masks
from detdistill.losses import region_squares
from detdistill.methods.method import Method, Weight, require
from detdistill.methods.shared.levels import Level, LevelConfig, PairedLevels
from detdistill.types import DetectorInfo, DetectorOutput, Targets, TrainState


@dataclass(frozen=True)
class CLoCKDistillConfig(LevelConfig):
    """weight_foreground, weight_background: of each level's two terms; one of weight 0 is left out. The others: see `LevelConfig`."""

    weight_foreground: Weight = 5e-5
    weight_background: Weight = 1e-7
    pyramid: str = "memory"


class CLoCKDistill(Method):
    """See the module's head. Its terms: `foreground`, `background`."""

    name = "clockdistill"
    group = "set predictions"
    paper = "arXiv:2502.10683"
    reads = "the encoder's memory, boxes of the ground truth"
    learns = "a 1x1 convolution a level where the widths differ"
    Config = CLoCKDistillConfig

    def __init__(self, config: CLoCKDistillConfig, levels: PairedLevels):
        super().__init__()
        self.config, self.levels = config, levels
        self.need = self.student_need = levels.need

    @classmethod
    def build(cls, config: CLoCKDistillConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError where a side has no such pyramid, no level can be paired or nothing weighs anything."""
        weights = config.weight_foreground or config.weight_background
        require(bool(weights), cls.name, "all its weights are 0", "see the options of methods.clockdistill")
        return cls(config, PairedLevels.build(cls.name, config, student, teacher))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        sizes = student_output.pyramids[self.config.pyramid].sizes
        parts = torch.stack(
            [_parts(level, targets, sizes) for level in self.levels(student_output, teacher_output)]
        ).sum(0)
        weights = {"foreground": self.config.weight_foreground, "background": self.config.weight_background}
        return {name: weight * part for (name, weight), part in zip(weights.items(), parts, strict=True) if weight}


def _parts(level: Level, targets: Targets, sizes: Tensor) -> Tensor:
    """Foreground and background of a level, not weighted, (2,). sizes (B, 2): the images' valid ones."""
    shape = (level.student.shape[-2], level.student.shape[-1])
    return region_squares(
        level.student, level.teacher, torch.stack(focal_masks(targets.boxes, shape, level.stride, sizes))
    )
