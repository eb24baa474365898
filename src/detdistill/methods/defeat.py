"""DeFeat: object and background features, each with its own weight. Guo et al., CVPR 2021, arXiv:2103.14475.

    L_neck = mean over levels of  w_obj/(2 N_obj) sum M |a(F_s) - F_t|^2 + w_bg/(2 N_bg) sum (1 - M) |a(F_s) - F_t|^2
    L_head = h_obj/n_obj sum over object regions of T^2 KL(p_t || p_s) + h_bg/n_bg sum over background regions of the same

M: each ground truth covers cells of one level only (`geometry.decoupled_regions`), chosen by its size against 56 pixels on the finest level
as in the code; `base: none` has that follow the finest stride. 1 - M is the whole rest of the map, padding included, as in the code. a: a
3x3 convolution a level, begun near zero as in the code.

Code and paper. N: the paper counts cells, the code cells times channels (`counts`; the weights 3 and 12 are the code's, so `code` is the default).
Head: the paper distils it, the released configuration, on Pascal VOC, leaves it off though its weights of 2 and 2 stand in the file (here
`weight_head_object` and `weight_head_background`, 0 unless given). It needs two-stage detectors on both sides. Weights of the COCO runs were not
released.

Not copied from the code: that the largest label of the batch is the background, whether it is there or not; the teacher's sampled regions with
labels of the student's (here both heads classify the student's, the code's `SampleSTU`, with their own labels); options found by substring; the
L1 that turns into squares above 1, where a smooth L1 does below. Normalisers are averaged over processes, where the code has each its own.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from detdistill.distributed import mean_over_processes
from detdistill.geometry import decoupled_regions
from detdistill.losses import decoupled_mse, softmax_kl
from detdistill.methods.method import Method, Weight, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.levels import LevelConfig, PairedLevels
from detdistill.methods.shared.rois import require_roi_heads, roi_rows
from detdistill.types import DetectorInfo, DetectorOutput, Need, Targets, TrainState

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class DeFeatConfig(LevelConfig):
    """weight_object, weight_background: of the neck's two terms. weight_head_object, weight_head_background: of the RoI head's two, with
    temperature_object and temperature_background. counts: what N counts. base: pixels, see `geometry.decoupled_regions`. The others: see
    `methods.shared.levels.LevelConfig`."""

    weight_object: Weight = 3.0
    weight_background: Weight = 12.0
    weight_head_object: Weight = 0.0
    weight_head_background: Weight = 0.0
    temperature_object: Positive = 1.0
    temperature_background: Positive = 1.0
    counts: Literal["code", "paper"] = "code"
    base: Positive | None = 56.0

    @property
    def head(self) -> bool:
        """True where the RoI heads are compared."""
        return bool(self.weight_head_object or self.weight_head_background)


class DeFeat(Method):
    """See the module's head. Its terms: `object`, `background`, and where asked `head_object`, `head_background`."""

    name = "defeat"
    group = "neck features"
    paper = "arXiv:2103.14475"
    reads = "neck features, ground truth; RoI classes where asked"
    learns = "a 3x3 convolution a level"
    gain = "Faster R-CNN R50 37.4 to 40.9"
    Config = DeFeatConfig

    def __init__(self, config: DeFeatConfig, levels: PairedLevels, shared: SharedClasses | None):
        """shared: where the RoI heads are compared."""
        super().__init__()
        self.config, self.levels, self.shared = config, levels, shared
        self.need = self.student_need = levels.need | Need(classify=shared is not None)

    @classmethod
    def build(cls, config: DeFeatConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError where no level can be paired, or the head's part is asked of detectors without RoI heads or shared classes."""
        neck = bool(config.weight_object or config.weight_background)
        require(neck or config.head, cls.name, "all its weights are 0", "see the options of methods.defeat")
        if config.head:
            remedy = (
                "take two-stage detectors, or leave methods.defeat.weight_head_object and weight_head_background at 0"
            )
            require_roi_heads(cls.name, student, teacher, remedy)
        shared = SharedClasses.between(cls.name, student, teacher) if config.head else None
        return cls(config, PairedLevels.build(cls.name, config, student, teacher, connector), shared)

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        config, levels = self.config, self.levels(student_output, teacher_output)
        shapes = [(level.student.shape[-2], level.student.shape[-1]) for level in levels]
        regions = decoupled_regions(targets.boxes, shapes, [level.stride for level in levels], config.base)
        pairs = [
            decoupled_mse(level.student, level.teacher, region, config.counts == "code")
            for level, region in zip(levels, regions, strict=True)
        ]
        inside, outside = (torch.stack(parts).mean() for parts in zip(*pairs, strict=True))
        terms = {"object": config.weight_object * inside, "background": config.weight_background * outside}
        if self.shared is not None:
            terms |= self._head(student_output, teacher_output, targets, self.shared)
        return terms

    def _head(
        self, student_output: DetectorOutput, teacher_output: DetectorOutput, targets: Targets, shared: SharedClasses
    ) -> dict[str, Tensor]:
        rows, config = roi_rows(student_output, teacher_output, targets, shared), self.config
        parts = {
            "head_object": (rows.foreground, config.temperature_object, config.weight_head_object),
            "head_background": (~rows.foreground, config.temperature_background, config.weight_head_background),
        }
        terms = {}
        for part, (kept, temperature, weight) in parts.items():
            distances = softmax_kl(rows.student[kept], rows.teacher[kept], temperature)
            terms[part] = weight * distances.sum() / mean_over_processes(kept.sum().float())
        return terms


def connector(student: int, teacher: int) -> nn.Module:
    """A 3x3 convolution between widths. Weights begin as 1e-4 times a normal's remainder by 2, as in the code; the bias as torch's."""
    layer = nn.Conv2d(student, teacher, 3, padding=1)
    with torch.no_grad():
        layer.weight.normal_().fmod_(2).mul_(1e-4)
    return layer
