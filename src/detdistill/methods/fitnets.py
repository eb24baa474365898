"""FitNets: hints, the teacher's maps as targets of the student's. Romero et al., ICLR 2015, arXiv:1412.6550.

    L = weight * sum over levels of mean (r(S) - T)^2

r is a 1x1 convolution, always there. It reads no head, no box and no class, so that on a pyramid most of what is copied is background: the
baseline that FGFI, DeFeat and FGD begin from.

The paper hints one middle layer of a classifier, half the sum of squares, in a stage of training before the labels. Here, as whoever used it for
detectors did, all levels of the neck are hinted beside the task's terms from the first step. The published weight of 100 goes with the
mean over one map of a classifier on CIFAR; released detector configurations take 1 (HEAD's RetinaNet, arXiv:2207.05345, a 1x1 convolution on
each of five levels) and 2 (LD's, without one) with the mean over all elements: 1 is the default. Behind its convolution the released classifier
code has batch norm and ReLU (`connector: published`), which can't give a level's negative half.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from detdistill.losses import hint_distance
from detdistill.methods.method import Method, Weight
from detdistill.methods.shared.levels import LevelConfig, PairedLevels, always, level_at, require_cells
from detdistill.types import DetectorInfo, DetectorOutput, Targets, TrainState


@dataclass(frozen=True)
class FitNetsConfig(LevelConfig):
    """weight: of each level's term. reduction, with what it goes by: `mean` over all elements; `half_sum` over an image's elements, the
    paper's, whose size is that of the map: weigh it so; `normalized`: maps divided by their norms, mmrazor's, with weight 10. connector: `plain`
    or `published`, see the module's head. The others: see `methods.shared.levels.LevelConfig`."""

    weight: Weight = 1.0
    reduction: Literal["mean", "half_sum", "normalized"] = "mean"
    connector: Literal["plain", "published"] = "plain"


class FitNets(Method):
    """See the module's head. Its term: `features`."""

    name = "fitnets"
    group = "neck features"
    paper = "arXiv:1412.6550"
    reads = "neck features"
    learns = "a 1x1 convolution a level"
    gain = "GFL R50 40.1 to 40.7 (GFL R101)"
    Config = FitNetsConfig

    def __init__(self, config: FitNetsConfig, levels: PairedLevels):
        super().__init__()
        self.config, self.levels = config, levels
        self.need = self.student_need = levels.need

    @classmethod
    def build(cls, config: FitNetsConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError where no level can be paired."""
        connect = always if config.connector == "plain" else published
        return cls(config, PairedLevels.build(cls.name, config, student, teacher, connect))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        if self.training and self.config.connector == "published":
            strides = [mine for mine, _ in self.levels.strides]
            require_cells(
                self.name,
                [level_at(student_output.pyramids[self.config.pyramid], stride) for stride in strides],
                strides,
            )
        levels = self.levels(student_output, teacher_output)
        terms = [hint_distance(level.student, level.teacher, self.config.reduction) for level in levels]
        return {"features": self.config.weight * torch.stack(terms).sum()}


def published(student: int, teacher: int) -> nn.Module:
    """The regressor of RepDistiller's and mdistiller's code, for maps of one size."""
    return nn.Sequential(nn.Conv2d(student, teacher, 1), nn.BatchNorm2d(teacher), nn.ReLU())
