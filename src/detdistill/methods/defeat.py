"""DeFeat: object features and background features with separate weights. Guo et al., CVPR 2021, arXiv:2103.14475.

    L_neck = mean over levels of  w_obj/(2 N_obj) sum M |a(F_s) - F_t|^2
                                + w_bg/(2 N_bg) sum (1 - M) |a(F_s) - F_t|^2
    L_head = h_obj/n_obj sum over object regions of T^2 KL(p_t || p_s)
           + h_bg/n_bg sum over background regions of T^2 KL(p_t || p_s)

T is the temperature. M is the mask of the objects. A ground-truth box covers cells of one level only
(`geometry.decoupled_regions`). The level depends on the size of the box relative to 56 pixels for the finest level, as
in the code. With `base: none` the 56 pixels are replaced by 14 times the finest stride. 1 - M is the whole rest of the
map, including padding, as in the code. A box that is too thin to cover a cell on one axis is a single cell, as in the
code; with `thin: strip` it is widened to one cell on that axis only, so that a tall thin box fills a column. a is a 3x3
convolution per level with initial weights near 0, as in the code.

Paper and published code:
- N: the paper counts cells, the code counts cells times channels (`counts`). The weights of 3 and 12 are the code's, so
  `code` is the default.
- L_head: the paper uses it. The released configuration, for Pascal VOC, leaves it out, although the file has weights of
  2 and 2 for it. Here these are `weight_head_object` and `weight_head_background`, 0 by default. They need a two-stage
  student and a two-stage teacher.
- The weights of the COCO runs were not released.

We did not copy these parts of the code:
- The code treats the largest label in the batch as the background, even if the batch has no background.
- The code combines the teacher's sampled regions with the labels of the student's regions. Here both heads classify the
  student's regions (the code's `SampleSTU`), and the labels are those of these regions.
- The code matches options by substring.
- The code's L1 is squared above 1. A smooth L1 is squared below 1.
- The code computes its normalizers per process. Here they are averaged over processes.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from detdistill.distributed import mean_over_processes
from detdistill.geometry import ThinBoxes, decoupled_regions
from detdistill.losses import decoupled_mse, softmax_kl
from detdistill.methods.method import Method, Weight, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.levels import LevelConfig, PairedLevels, near_zero_convolution
from detdistill.methods.shared.rois import require_roi_heads, roi_rows
from detdistill.types import DetectorInfo, DetectorOutput, Need, Targets, TrainState

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class DeFeatConfig(LevelConfig):
    """weight_object, weight_background: weights of the neck's two terms.
    weight_head_object, weight_head_background: weights of the RoI head's two terms.
    temperature_object, temperature_background: temperatures of the RoI head's two terms.
    counts: what N counts. `code`: cells times channels; `paper`: cells.
    base: pixels. A box with a side below 2 * base belongs to the finest level, below 4 * base to the next level, and so
        on; none: 14 strides of the finest level. See `geometry.decoupled_regions`.
    thin: cells of a box that covers no cell on one axis: a single `cell`, as in the code, or a `strip` of one cell's
        width along the box.
    The other options: see `LevelConfig`.
    """

    weight_object: Weight = 3.0
    weight_background: Weight = 12.0
    weight_head_object: Weight = 0.0
    weight_head_background: Weight = 0.0
    temperature_object: Positive = 1.0
    temperature_background: Positive = 1.0
    counts: Literal["code", "paper"] = "code"
    base: Positive | None = 56.0
    thin: ThinBoxes = "cell"

    @property
    def compares_neck(self) -> bool:
        """True if a term of the neck has a weight."""
        return bool(self.weight_object or self.weight_background)

    @property
    def compares_heads(self) -> bool:
        """True if a term of the RoI heads has a weight."""
        return bool(self.weight_head_object or self.weight_head_background)


class DeFeat(Method):
    """See the module docstring. Terms: `object`, `background`, and with RoI heads `head_object`, `head_background`."""

    name = "defeat"
    group = "neck features"
    paper = "arXiv:2103.14475"
    copies = "neck features, objects and background separately; optionally the RoI head's classes"
    requires = "a level with the same stride on both sides; for the classes, RoI heads on both sides"
    reads = "neck features, ground-truth boxes; as an option RoI classes"
    learns = "a 3x3 convolution per level"
    gain = "Faster R-CNN R50 37.4 to 40.9"
    Config = DeFeatConfig

    def __init__(self, config: DeFeatConfig, levels: PairedLevels, shared: SharedClasses | None):
        """shared: the shared classes if the RoI heads are compared, else None."""
        super().__init__()
        self.config, self.levels, self.shared = config, levels, shared
        self.need = self.student_need = levels.need | Need(classify=shared is not None)

    @classmethod
    def build(cls, config: DeFeatConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError if no level can be paired or if all weights are 0.

        Also raises it if the RoI heads are compared and a detector has no RoI head, or the detectors share no class.
        """
        has_weight = config.compares_neck or config.compares_heads
        require(has_weight, cls.name, "all its weights are 0", "see the options of methods.defeat")
        shared = None
        if config.compares_heads:
            options = "methods.defeat.weight_head_object and weight_head_background"
            require_roi_heads(cls.name, student, teacher, f"use two-stage detectors, or set {options} to 0")
            shared = SharedClasses.between(cls.name, student, teacher)
        levels = PairedLevels.build(cls.name, config, student, teacher, near_zero_convolution)
        return cls(config, levels, shared)

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
        strides = [level.stride for level in levels]
        regions = decoupled_regions(targets.boxes, shapes, strides, config.base, config.thin)
        object_terms, background_terms = [], []
        for level, region in zip(levels, regions, strict=True):
            inside, outside = decoupled_mse(level.student, level.teacher, region, config.counts == "code")
            object_terms.append(inside)
            background_terms.append(outside)
        terms = {
            "object": config.weight_object * torch.stack(object_terms).mean(),
            "background": config.weight_background * torch.stack(background_terms).mean(),
        }
        if self.shared is not None:
            terms |= self._head_terms(student_output, teacher_output, targets, self.shared)
        return terms

    def _head_terms(
        self, student_output: DetectorOutput, teacher_output: DetectorOutput, targets: Targets, shared: SharedClasses
    ) -> dict[str, Tensor]:
        """Returns the weighted terms of the RoI heads, () each."""
        rows, config = roi_rows(student_output, teacher_output, targets, shared), self.config
        parts = {
            "head_object": (rows.foreground, config.temperature_object, config.weight_head_object),
            "head_background": (~rows.foreground, config.temperature_background, config.weight_head_background),
        }
        terms = {}
        for part, (mask, temperature, weight) in parts.items():
            distances = softmax_kl(rows.student[mask], rows.teacher[mask], temperature)
            terms[part] = weight * distances.sum() / mean_over_processes(mask.sum().float())
        return terms
