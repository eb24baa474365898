"""FRS: feature richness score, imitation of the neck where the teacher is confident. Du et al., NeurIPS 2021.

    M   = max over anchors and classes of sigmoid(the teacher's class logits), per cell, without ground truth
    L   = sum over levels of  weight * sum M |S - T|^2 / sum M  +  weight_class * sum M BCE(z', sigmoid(z)) / sum M

|S - T|^2 is a sum over channels, and BCE is a sum over anchors and classes. z' and z are the student's and the
teacher's class logits. The sums over M include all images. The normalizer sum M is averaged over processes. The minimum
of the first term is 0. The minimum of the second is the entropy of the teacher's scores. M uses the classes that both
detectors have. Padding is included, with the scores that the teacher predicts there. A two-stage teacher predicts class
scores for its proposals only, so M is then the objectness of its RPN. This use of the RPN is our addition.

`form: ultralytics` is the distance that the Ultralytics library added in 2026. It is described there and not in a
paper. |S - T|^2 is divided by the number of channels, and each student level goes through two learned 1x1 convolutions
with a ReLU between them, whatever its channel count. Its published weight is 6. That library averages the logits of its
two heads. Our detectors have one head.

The published runs used both terms. Their weights could not be verified. The weight of 0.02 is ours: with 256 channels
it is about equal to the weight of 6 of the other form. The class term is off by default, because it needs the same grid
on both sides. The 1x1 convolution for different channel counts is ours.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detdistill.losses import weighted_entropy, weighted_square
from detdistill.methods.method import Method, Weight, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.levels import LevelConfig, PairedLevels, when_channels_differ
from detdistill.methods.shared.predictions import require_same_cells
from detdistill.types import DetectorInfo, DetectorOutput, Need, Predictions, Targets, TrainState, required


@dataclass(frozen=True)
class FRSConfig(LevelConfig):
    """weight: weight of each level's neck term. A term of weight 0 is not computed.
    weight_class: weight of each level's class term. The class term uses all levels.
    form: `frs`: squared distance, summed over channels; `ultralytics`: mean over channels, and two learned 1x1
        convolutions per level.
    The other options: see `LevelConfig`.
    """

    weight: Weight = 0.02
    weight_class: Weight = 0.0
    form: Literal["frs", "ultralytics"] = "frs"


class FRS(Method):
    """See the module docstring. Terms: `features`, `class`."""

    name = "frs"
    group = "neck features"
    paper = "NeurIPS 2021"
    copies = "neck features where the teacher is confident"
    requires = "a level with the same stride on both sides, and a teacher with dense scores or an RPN"
    reads = "neck features, the teacher's class scores or objectness"
    learns = "a 1x1 convolution per level if the channel counts differ; two on every level with form ultralytics"
    gain = "RetinaNet R50 37.4 to 39.7 (RetinaNet R101), with the class term"
    unlabeled = True
    Config = FRSConfig

    def __init__(self, config: FRSConfig, levels: PairedLevels, shared: SharedClasses | None):
        """shared: the shared classes, or None if the teacher has two stages."""
        super().__init__()
        self.config, self.levels, self.shared = config, levels, shared
        self.need = levels.need | (Need(proposals=True) if shared is None else Need(predictions=True))
        self.student_need = levels.need | Need(predictions=bool(config.weight_class))

    @classmethod
    def build(cls, config: FRSConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError if no level can be paired, if the teacher has no scores per cell, or if all weights are 0.

        Also raises it if the class term has a weight and the grids differ, or if a dense teacher shares no class with
        the student.
        """
        has_weight = bool(config.weight or config.weight_class)
        require(has_weight, cls.name, "all its weights are 0", "see the options of methods.frs")
        is_two_stage = teacher.proposals is not None
        problem = f"the teacher ({teacher.kind}) has no scores per cell"
        remedy = "use a dense or two-stage teacher, or the method pkd, mgd or cwd"
        require(is_two_stage or teacher.grid is not None, cls.name, problem, remedy)
        if config.weight_class:
            require_same_cells(cls.name, student, teacher)
        connect = two_convolutions if config.form == "ultralytics" else when_channels_differ
        levels = PairedLevels.build(cls.name, config, student, teacher, connect)
        return cls(config, levels, None if is_two_stage else SharedClasses.between(cls.name, student, teacher))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        if self.shared is None:
            teacher_predictions = teacher_output.stages[0]  # of the RPN
        else:
            teacher_predictions = self.shared.of_teacher(teacher_output.stages[-1])
        masks = confidence(teacher_predictions)
        terms = {}
        if self.config.weight:
            distances = []
            levels = self.levels(student_output, teacher_output)
            for level, (_, teacher_stride) in zip(levels, self.levels.strides, strict=True):
                mask = _resized(masks[teacher_stride], level.student)
                divisor = level.student.shape[1] if self.config.form == "ultralytics" else 1
                distances.append(weighted_square(level.student, level.teacher, mask) / divisor)
            terms["features"] = self.config.weight * torch.stack(distances).sum()
        if self.config.weight_class:
            student_predictions = required(self.shared).of_student(student_output.stages[-1])
            student_logits = required(student_predictions.layout).split(student_predictions.logits)  # (B, H, W, A, K)
            teacher_logits = required(teacher_predictions.layout).split(teacher_predictions.logits)  # (B, H, W, A, K)
            rows = zip(student_logits, teacher_logits, masks.values(), strict=True)
            entropies = [weighted_entropy(student, teacher, mask) for student, teacher, mask in rows]
            terms["class"] = self.config.weight_class * torch.stack(entropies).sum()
        return terms


def two_convolutions(student_channels: int, teacher_channels: int) -> nn.Sequential:
    """Returns the connector of `form: ultralytics`: two 1x1 convolutions with a ReLU between them."""
    return nn.Sequential(
        nn.Conv2d(student_channels, teacher_channels, 1), nn.ReLU(), nn.Conv2d(teacher_channels, teacher_channels, 1)
    )


def confidence(predictions: Predictions) -> dict[int, Tensor]:
    """Returns M, the best score of a cell's anchors and classes, as (B, H, W) per stride, detached.

    The strides are ordered from fine to coarse.
    """
    layout = required(predictions.layout)
    scores = predictions.scores().detach().amax(-1)  # (B, N, K) -> (B, N)
    levels = layout.split(scores)  # (B, H, W, A) per level
    return {stride: level.amax(-1) for stride, level in zip(layout.strides, levels, strict=True)}


def _resized(mask: Tensor, features: Tensor) -> Tensor:
    """Returns the mask (B, h, w) at the size of the maps (B, C, H, W)."""
    if mask.shape[-2:] == features.shape[-2:]:
        return mask
    return F.interpolate(mask[:, None], features.shape[-2:], mode="bilinear", align_corners=False)[:, 0]  # (B, H, W)
