"""CLoCKDistill: the encoder's memory, with objects weighted by their size. Lan and Tian, WACV 2026, arXiv:2502.10683.

    L = sum over levels of  a sum M (S - T)^2 + b sum N (S - T)^2,    sums over cells and channels, mean over images

S and T are the outputs of the student's and the teacher's encoder. In a cell of a box, M is 1 / (number of cells of the
box). If several boxes overlap, the value of the smallest box is used. Outside all boxes M is 0. N is 1 / (number of
cells outside all boxes) in these cells, and 0 inside the boxes. Every box is drawn on every level. The minimum is 0.

This is the memory distillation of the paper alone. The other half of the paper runs the decoders of both sides on the
same queries, made from the ground truth. It is not implemented here (kddetr runs both decoders on the same queries).
The weights 5e-5 (a) and 1e-7 (b) are the paper's, as reported by others.

We follow FGD, which has the same masks, where the paper is not clear: channels are summed, not averaged, and the cells
of a box are those of `geometry.focal_masks`, which leaves out padding. We added a 1x1 convolution for different channel
counts, and `pyramid: neck`, which compares the maps before the encoder, or the maps of detectors without an encoder.
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
    """weight_foreground, weight_background: weights of each level's two terms. A term of weight 0 is left out.
    The other options: see `LevelConfig`.
    """

    weight_foreground: Weight = 5e-5
    weight_background: Weight = 1e-7
    pyramid: str = "memory"


class CLoCKDistill(Method):
    """See the module docstring. Terms: `foreground`, `background`."""

    name = "clockdistill"
    group = "set predictions"
    paper = "arXiv:2502.10683"
    copies = "the encoder's memory, objects and background separately"
    requires = "encoders on both sides and a level with the same stride on both sides"
    reads = "the encoder's memory, ground-truth boxes"
    learns = "a 1x1 convolution per level if the channel counts differ"
    Config = CLoCKDistillConfig

    def __init__(self, config: CLoCKDistillConfig, levels: PairedLevels):
        super().__init__()
        self.config, self.levels = config, levels
        self.need = self.student_need = levels.need

    @classmethod
    def build(cls, config: CLoCKDistillConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError if a side has no such pyramid, if no level can be paired, or if all weights are 0."""
        has_weight = bool(config.weight_foreground or config.weight_background)
        require(has_weight, cls.name, "all its weights are 0", "see the options of methods.clockdistill")
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
        levels = self.levels(student_output, teacher_output)
        foreground, background = torch.stack([_region_terms(level, targets, sizes) for level in levels]).sum(0)
        terms = {}
        if self.config.weight_foreground:
            terms["foreground"] = self.config.weight_foreground * foreground
        if self.config.weight_background:
            terms["background"] = self.config.weight_background * background
        return terms


def _region_terms(level: Level, targets: Targets, sizes: Tensor) -> Tensor:
    """Returns the unweighted foreground and background term of a level, (2,).

    sizes (B, 2): height and width of each image.
    """
    shape = (level.student.shape[-2], level.student.shape[-1])
    masks = focal_masks(targets.boxes, shape, level.stride, sizes)
    return region_squares(level.student, level.teacher, torch.stack(masks))
