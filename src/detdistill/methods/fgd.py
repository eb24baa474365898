"""FGD: focal and global knowledge distillation. Yang et al., CVPR 2022, arXiv:2111.11837.

    L = sum over levels of  a L_fg + b L_bg + g L_att + l L_rel,  each a sum over cells and channels, mean over images
    L_fg  = sum A_S A_C M_fg (S - T)^2
    L_bg  = sum A_S A_C M_bg (S - T)^2
    L_att = sum |A_S(S) - A_S(T)| + sum |A_C(S) - A_C(T)|
    L_rel = sum (R_s(S) - R_t(T))^2

A_S(F) and A_C(F) are the spatial and the channel attention of a map F. A_S and A_C without an argument are those of the
teacher's map T. M_fg is 1 / (number of cells of the box) in the cells of a box. M_bg is 1 / (number of cells outside
all boxes) in these cells. R(F) is F plus a context vector of F from a learned block (GcNet), one block per side and
level.

Every box is drawn on every level. A new block adds 0, so L_rel starts as the plain squared distance. For equal
maps every term has its minimum, 0. After some training this is not true for L_rel, because its two blocks then differ.

Paper and published code:
- The attention weight g for one-stage heads and the temperature for FCOS (0.8 in the code) are not the same in paper
  and code. `variant` selects the row of `methods.presets` that the weights come from.
- The code also trains the block on the teacher's side, so the target can change during training. We added
  `teacher_context: false`, where the target is the teacher's map itself.
- The code divides boxes by the size of their image and multiplies them by the size of the padded map. Boxes are
  therefore stretched if a batch is padded (`masks: published`). The default here is `masks: stride`, with which padding
  changes nothing, although the published numbers were obtained with the stretched boxes. Without padding both are
  equal.
- The attentions are softmaxes over the whole map, including padding, as in the code.
- A 1x1 convolution is learned if the channel counts differ, as in the code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from detdistill.geometry import focal_masks
from detdistill.losses import attention_distance, focal_distance, squared_distance
from detdistill.methods.method import Method, Weight, require
from detdistill.methods.shared.levels import Level, LevelConfig, PairedLevels, pair_widths
from detdistill.types import DetectorInfo, DetectorOutput, Targets, TrainState


@dataclass(frozen=True)
class FGDConfig(LevelConfig):
    """weight_foreground, weight_background, weight_attention, weight_relation: weights of the four terms. A term of
        weight 0 is not computed.
    temperature: temperature of the spatial and the channel attention.
    variant: `code` or `paper`, the source of the published weights. They differ for dense heads.
    masks: `stride` divides boxes by the stride; `published` stretches them with the padding.
    teacher_context: true: the teacher's map also has a learned context block, as published; false: it has none.
    The other options: see `LevelConfig`.
    """

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
        """The weights above 0, by term."""
        weights = {
            "foreground": self.weight_foreground,
            "background": self.weight_background,
            "attention": self.weight_attention,
            "relation": self.weight_relation,
        }
        return {term: weight for term, weight in weights.items() if weight}


class ContextBlock(nn.Module):
    """R: adds to a map (B, C, H, W) a context vector (B, C, 1, 1), computed from a learned weighted mean of its cells.

    The weights of the mean are a softmax over cells. The last layer is 0 at first, and so is the vector.
    """

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
        """Maps (B, C, H, W) to (B, C, H, W)."""
        share = self.attend(features).flatten(2).softmax(-1)  # (B, 1, H, W) -> (B, 1, HW)
        context = (features.flatten(2) * share).sum(-1)[:, :, None, None]  # (B, C, HW) -> (B, C, 1, 1)
        return features + self.transform(context)


class FGD(Method):
    """See the module docstring. Terms: `foreground`, `background`, `attention`, `relation`."""

    name = "fgd"
    group = "neck features"
    paper = "arXiv:2111.11837"
    copies = "neck features, weighted by objects, background and attention, and their context"
    requires = "a level with the same stride on both sides"
    reads = "neck features, ground-truth boxes"
    learns = "a context block per level and side; a 1x1 convolution per level if the channel counts differ"
    gain = "RetinaNet R50 37.4 to 40.4 (RetinaNet X101)"
    Config = FGDConfig

    def __init__(self, config: FGDConfig, levels: PairedLevels, channels: Sequence[int]):
        """channels: of the teacher's levels, which the student's maps also have after the connectors."""
        super().__init__()
        self.config, self.levels = config, levels
        self.need = self.student_need = levels.need
        widths = channels if config.weight_relation else ()
        self.student_blocks = nn.ModuleList(ContextBlock(width) for width in widths)
        self.teacher_blocks = nn.ModuleList(
            ContextBlock(width) if config.teacher_context else nn.Identity() for width in widths
        )

    @classmethod
    def build(cls, config: FGDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError if no level can be paired or if all weights are 0."""
        require(bool(config.weights), cls.name, "all its weights are 0", "see the options of methods.fgd")
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
        sizes = student_output.pyramids[self.config.pyramid].sizes
        levels = [self._level_terms(level, targets, sizes) for level in self.levels(student_output, teacher_output)]
        return {
            term: weight * torch.stack([level[term] for level in levels]).sum()
            for term, weight in self.config.weights.items()
        }

    def _level_terms(self, level: Level, targets: Targets, sizes: Tensor) -> dict[str, Tensor]:
        """Returns the unweighted terms of a level, () each. sizes (B, 2): height and width of each image.

        Terms of weight 0 are left out, but if one of foreground and background has a weight, both are returned.
        """
        weights, temperature = self.config.weights, self.config.temperature
        terms = {}
        if "foreground" in weights or "background" in weights:
            shape = (level.student.shape[-2], level.student.shape[-1])
            is_stretched = self.config.masks == "published"
            masks = focal_masks(targets.boxes, shape, level.stride, sizes, stretched=is_stretched)
            distances = focal_distance(level.student, level.teacher, torch.stack(masks), temperature)  # (2,)
            terms["foreground"], terms["background"] = distances
        if "attention" in weights:
            terms["attention"] = attention_distance(level.student, level.teacher, temperature)
        if "relation" in weights:
            student_block, teacher_block = self.student_blocks[level.index], self.teacher_blocks[level.index]
            terms["relation"] = squared_distance(student_block(level.student), teacher_block(level.teacher))
        return terms
