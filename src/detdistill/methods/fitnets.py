"""FitNets: hints, the teacher's maps as targets for the student's maps. Romero et al., ICLR 2015, arXiv:1412.6550.

    L = weight * sum over levels of mean (r(S) - T)^2

r is a 1x1 convolution, used even if the channel counts are equal. The method reads no head, no boxes and no classes. On
a pyramid most of the imitated cells are therefore background: FitNets is the baseline that FGFI, DeFeat and FGD
improve.

Paper and published code:
- The paper compares one middle layer of a classifier, by half the sum of squares, in a stage of training before the
  training on labels. Here, as in later uses on detectors, all levels of the neck are compared from the first step, in
  addition to the task losses.
- The published weight of 100 belongs to the mean over one map of a CIFAR classifier. Released detector configurations
  use the mean over all elements with a weight of 1 (HEAD's RetinaNet, arXiv:2207.05345, with a 1x1 convolution on each
  of five levels) or 2 (LD's, without a convolution). The default here is 1.
- The released classifier code applies batch norm and ReLU after the convolution (`connector: published`). Its output
  can't match the negative values of a level.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from detdistill.losses import hint_distance
from detdistill.methods.method import Method, Weight
from detdistill.methods.shared.levels import LevelConfig, PairedLevels, always, level_at, require_two_cells
from detdistill.types import DetectorInfo, DetectorOutput, Targets, TrainState


@dataclass(frozen=True)
class FitNetsConfig(LevelConfig):
    """weight: weight of each level's term. It depends on `reduction`.
    reduction: `mean` over all elements, or `half_sum` over the elements of an image, as in the paper, or `normalized`:
        each map is divided by its norm, as in mmrazor, with weight 10. A `half_sum` grows with the size of the map, so
        it needs a small weight.
    connector: `plain` is the 1x1 convolution; `published` adds batch norm and ReLU, as released.
    The other options: see `LevelConfig`.
    """

    weight: Weight = 1.0
    reduction: Literal["mean", "half_sum", "normalized"] = "mean"
    connector: Literal["plain", "published"] = "plain"


class FitNets(Method):
    """See the module docstring. Terms: `features`."""

    name = "fitnets"
    group = "neck features"
    paper = "arXiv:1412.6550"
    copies = "neck features, all cells alike"
    requires = "a level with the same stride on both sides"
    reads = "neck features"
    learns = "a 1x1 convolution per level"
    gain = "GFL R50 40.1 to 40.7 (GFL R101)"
    unlabeled = True
    Config = FitNetsConfig

    def __init__(self, config: FitNetsConfig, levels: PairedLevels):
        super().__init__()
        self.config, self.levels = config, levels
        self.need = self.student_need = levels.need

    @classmethod
    def build(cls, config: FitNetsConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError if no level can be paired."""
        connect = always if config.connector == "plain" else published_connector
        return cls(config, PairedLevels.build(cls.name, config, student, teacher, connect))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`. Raises UserError if batch norm would train on one cell."""
        if self.training and self.config.connector == "published":
            strides = [student_stride for student_stride, _ in self.levels.strides]
            student_pyramid = student_output.pyramids[self.config.pyramid]
            require_two_cells(self.name, [level_at(student_pyramid, stride) for stride in strides], strides)
        levels = self.levels(student_output, teacher_output)
        terms = [hint_distance(level.student, level.teacher, self.config.reduction) for level in levels]
        return {"features": self.config.weight * torch.stack(terms).sum()}


def published_connector(student_channels: int, teacher_channels: int) -> nn.Module:
    """Returns the regressor for maps of equal size of the RepDistiller and mdistiller code."""
    return nn.Sequential(nn.Conv2d(student_channels, teacher_channels, 1), nn.BatchNorm2d(teacher_channels), nn.ReLU())
