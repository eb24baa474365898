"""FRS: imitation of the neck where the teacher is sure of something (feature richness score). Du et al., NeurIPS 2021.

    M   = max over anchors and classes of sigmoid(the teacher's class logits)    of each cell; no ground truth
    L   = sum over levels of  weight * sum M |S - T|^2 / sum M  +  weight_class * sum M BCE(z', sigmoid(z)) / sum M

|S - T|^2 is a sum over channels, BCE one over anchors and classes, the sums over M run over all images; sum M is averaged over processes. The
first term's minimum is 0, the second's the entropy of the teacher's scores. M counts the classes that both know, and padding as the teacher
scores it. Of a two-stage teacher, whose class scores hang on its proposals, M is the objectness of its RPN: that is ours.

`form: ultralytics` is the distance that library added in 2026, described there and not in a paper: |S - T|^2 is divided by the number of channels, and
each of the student's levels goes through two learned 1x1 convolutions with a ReLU between them, whatever its width. Its published weight is 6.
It takes the mean of the logits of its two heads; our detectors have one.

The published runs had both terms. Their weights could not be verified: 0.02 is ours, which with 256 channels is about the 6 of the other form. The
class term is off by default, as it needs one grid on both sides. A 1x1 convolution where widths differ is ours.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detdistill.losses import weighted_entropy, weighted_square
from detdistill.methods.method import Method, Weight, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.levels import LevelConfig, PairedLevels, when_widths_differ
from detdistill.methods.shared.predictions import require_same_cells
from detdistill.types import DetectorInfo, DetectorOutput, Need, Predictions, Targets, TrainState, required


@dataclass(frozen=True)
class FRSConfig(LevelConfig):
    """weight: of each level's neck term. weight_class: of each level's class term. A term of weight 0 is not computed. form: see the module's
    head. The others: see `LevelConfig`; the class term is on all levels."""

    weight: Weight = 0.02
    weight_class: Weight = 0.0
    form: Literal["frs", "ultralytics"] = "frs"


class FRS(Method):
    """See the module's head. Its terms: `features`, `class`."""

    name = "frs"
    group = "neck features"
    paper = "NeurIPS 2021"
    reads = "neck features, the teacher's class scores or objectness"
    learns = "a 1x1 convolution a level where the widths differ; with form ultralytics two on every level"
    gain = "RetinaNet R50 37.4 to 39.7 (RetinaNet R101), with the class term"
    Config = FRSConfig

    def __init__(self, config: FRSConfig, levels: PairedLevels, shared: SharedClasses | None):
        """shared: none where the teacher has two stages."""
        super().__init__()
        self.config, self.levels, self.shared = config, levels, shared
        self.need = levels.need | (Need(proposals=True) if shared is None else Need(predictions=True))
        self.student_need = levels.need | Need(predictions=bool(config.weight_class))

    @classmethod
    def build(cls, config: FRSConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError where no level can be paired, the teacher has no scores of cells, or the class term has no common grid."""
        require(
            bool(config.weight or config.weight_class),
            cls.name,
            "all its weights are 0",
            "see the options of methods.frs",
        )
        two_stage = teacher.proposals is not None
        lacking = f"the teacher ({teacher.kind}) has no scores of its cells"
        remedy = "take a dense or two-stage teacher, or pkd, mgd or cwd"
        require(two_stage or teacher.grid is not None, cls.name, lacking, remedy)
        if config.weight_class:
            require_same_cells(cls.name, student, teacher)
        connect = projector if config.form == "ultralytics" else when_widths_differ
        levels = PairedLevels.build(cls.name, config, student, teacher, connect)
        return cls(config, levels, None if two_stage else SharedClasses.between(cls.name, student, teacher))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        taught = teacher_output.stages[0] if self.shared is None else self.shared.of_teacher(teacher_output.stages[-1])
        masks = confidence(taught)
        terms = {}
        if self.config.weight:
            distances = [
                weighted_square(level.student, level.teacher, _like(masks[theirs], level.student))
                / self._divisor(level.student)
                for level, (_, theirs) in zip(
                    self.levels(student_output, teacher_output), self.levels.strides, strict=True
                )
            ]
            terms["features"] = self.config.weight * torch.stack(distances).sum()
        if self.config.weight_class:
            guess = required(self.shared).of_student(student_output.stages[-1])
            logits = [required(side.layout).split(side.logits) for side in (guess, taught)]
            entropies = [
                weighted_entropy(mine, theirs, mask) for mine, theirs, mask in zip(*logits, masks.values(), strict=True)
            ]
            terms["class"] = self.config.weight_class * torch.stack(entropies).sum()
        return terms

    def _divisor(self, features: Tensor) -> int:
        return features.shape[1] if self.config.form == "ultralytics" else 1


def projector(student: int, teacher: int) -> nn.Sequential:
    """The two 1x1 convolutions of the form `ultralytics`, from the student's width to the teacher's."""
    return nn.Sequential(nn.Conv2d(student, teacher, 1), nn.ReLU(), nn.Conv2d(teacher, teacher, 1))


def confidence(predictions: Predictions) -> dict[int, Tensor]:
    """(B, H, W) of each level, by stride, fine to coarse: the best score of a cell's anchors and classes. No gradient."""
    layout = required(predictions.layout)
    best = layout.split(predictions.scores().detach().amax(-1))
    return {stride: level.amax(-1) for stride, level in zip(layout.strides, best, strict=True)}


def _like(mask: Tensor, features: Tensor) -> Tensor:
    """The mask (B, H, W) in the size of the maps, where these were resized."""
    if mask.shape[-2:] == features.shape[-2:]:
        return mask
    return F.interpolate(mask[:, None], features.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
