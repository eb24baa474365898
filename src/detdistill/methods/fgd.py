"""FGD: focal and global knowledge distillation. Yang et al., CVPR 2022, arXiv:2111.11837.

    L = sum over levels of  a L_fg + b L_bg + g L_att + l L_rel,  each a sum over cells and channels, mean over images
    L_fg, L_bg = sum A_S A_C M (S - T)^2     A: the teacher's attentions; M: boxes, 1 / their cells; the rest, 1 / its cells
    L_att      = sum |A_S(S) - A_S(T)| + sum |A_C(S) - A_C(T)|
    L_rel      = sum (R_s(S) - R_t(T))^2     R(F) = F + a context vector of F from a learned block (GcNet), one a side and level

Every box is drawn on every level. A new block adds nothing, so that L_rel begins as the plain squared distance. Minimum 0, but for L_rel, whose
blocks differ once they have learned.

Code and paper. The attention weight g differs for one-stage heads and FCOS's temperature is 0.8 in the code (`variant`: whose row of
`methods.presets` the weights come from). The block on the teacher's side is trained too in the code, so that the target may drift;
`teacher_context: false` is ours: the teacher's map itself is the target. The code divides boxes by the image's size and multiplies them by the
padded map's, so that they are stretched where a batch is padded (`masks: published`); the default here is `stride`, although the published
numbers came from the other: in this house padding moves nothing, and without padding the two are one. Attentions are softmaxes over the whole
map, padding included, as in the code. The code uses 1x1 convolutions where widths differ, as here.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from detdistill.geometry import focal_masks
from detdistill.losses import attention_distance, focal_distance, squared_distance
from detdistill.methods.method import Method, Weight, require
from detdistill.methods.shared.levels import Level, LevelConfig, PairedLevels
from detdistill.types import DetectorInfo, DetectorOutput, Targets, TrainState


@dataclass(frozen=True)
class FGDConfig(LevelConfig):
    """weight_foreground, weight_background, weight_attention, weight_relation: of the four terms; one of weight 0 is not computed.
    temperature: of both attentions. variant, masks, teacher_context: see the module's head. The others: see `LevelConfig`."""

    weight_foreground: Weight = 1e-3
    weight_background: Weight = 5e-4
    weight_attention: Weight = 1e-3
    weight_relation: Weight = 5e-6
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    variant: Literal["code", "paper"] = "code"
    masks: Literal["stride", "published"] = "stride"
    teacher_context: bool = True

    @property
    def weights(self) -> dict[str, float]:
        """By term, those above 0."""
        terms = ("foreground", "background", "attention", "relation")
        return {term: getattr(self, f"weight_{term}") for term in terms if getattr(self, f"weight_{term}")}


class ContextBlock(nn.Module):
    """R: maps (B, C, H, W) plus a vector (B, C, 1, 1) made of their mean under a learned softmax over cells; at first that vector is 0."""

    def __init__(self, channels: int):
        super().__init__()
        half = max(1, channels // 2)
        self.attend = nn.Conv2d(channels, 1, 1)
        last = nn.Conv2d(half, channels, 1)
        self.transform = nn.Sequential(nn.Conv2d(channels, half, 1), nn.LayerNorm([half, 1, 1]), nn.ReLU(), last)
        nn.init.kaiming_normal_(self.attend.weight, nonlinearity="relu")
        for parameter in (self.attend.bias, last.weight, last.bias):
            nn.init.zeros_(parameter)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        share = self.attend(features).flatten(2).softmax(-1)  # (B, 1, HW)
        context = (features.flatten(2) * share).sum(-1)[:, :, None, None]
        return features + self.transform(context)


class FGD(Method):
    """See the module's head. Its terms: `foreground`, `background`, `attention`, `relation`."""

    name = "fgd"
    group = "neck features"
    paper = "arXiv:2111.11837"
    reads = "neck features, boxes of the ground truth"
    learns = "a context block a level and side; a 1x1 convolution a level where the widths differ"
    gain = "RetinaNet R50 37.4 to 40.4 (RetinaNet X101)"
    Config = FGDConfig

    def __init__(self, config: FGDConfig, levels: PairedLevels, width: int):
        """width: the teacher's, which all maps have behind the connectors."""
        super().__init__()
        self.config, self.levels = config, levels
        self.need = self.student_need = levels.need
        count = len(levels.strides) if config.weight_relation else 0
        self.student_blocks = nn.ModuleList(ContextBlock(width) for _ in range(count))
        self.teacher_blocks = nn.ModuleList(
            ContextBlock(width) if config.teacher_context else nn.Identity() for _ in range(count)
        )

    @classmethod
    def build(cls, config: FGDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError where no level can be paired or nothing weighs anything."""
        require(bool(config.weights), cls.name, "all its weights are 0", "see the options of methods.fgd")
        levels = PairedLevels.build(cls.name, config, student, teacher)
        return cls(config, levels, teacher.channels[config.pyramid])

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        sizes = student_output.pyramids[self.config.pyramid].sizes
        levels = [self._level(level, targets, sizes) for level in self.levels(student_output, teacher_output)]
        return {
            term: weight * torch.stack([level[term] for level in levels]).sum()
            for term, weight in self.config.weights.items()
        }

    def _level(self, level: Level, targets: Targets, sizes: Tensor) -> dict[str, Tensor]:
        """The four terms of a level, not weighted, (); those of weight 0 left out. sizes (B, 2): the images' valid ones."""
        mine, theirs, weights, terms = level.student, level.teacher, self.config.weights, {}
        if "foreground" in weights or "background" in weights:
            rows, columns = mine.shape[-2:]
            masks = focal_masks(
                targets.boxes, (rows, columns), level.stride, sizes, stretched=self.config.masks == "published"
            )
            terms["foreground"], terms["background"] = focal_distance(
                mine, theirs, torch.stack(masks), self.config.temperature
            )
        if "attention" in weights:
            terms["attention"] = attention_distance(mine, theirs, self.config.temperature)
        if "relation" in weights:
            block, target_block = self.student_blocks[level.index], self.teacher_blocks[level.index]
            terms["relation"] = squared_distance(block(mine), target_block(theirs))
        return terms
