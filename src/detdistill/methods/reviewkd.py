"""ReviewKD: fused student levels imitate the teacher's levels. Chen et al., CVPR 2021, arXiv:2104.09044.

    L = weight * sum over levels j of D(U(S_j, S_j+1..n), T_j)

U fuses the student's level j with all deeper levels (`methods.reviewkd_fusion`). Deeper levels are coarser levels. A
teacher level therefore teaches the student level of equal stride and every deeper one. The paper calls this knowledge
review. D is `losses.hierarchical_context`. The teacher's maps are not adapted: only the student's side has learned
blocks. The method reads no head, no boxes and no classes. D pools over the whole map, including padding, as published.

Published code:
- The weights were published with Detectron2, a ResNet-101 teacher and a ResNet-50 student: 1 for Faster R-CNN and
  RetinaNet, 0.8 for Mask R-CNN. Smaller students used up to 2.
- The detection code fuses all five levels at 256 channels, resizes to the exact size (any size works) and computes
  batch-norm statistics per process. All of this is the same here.
- The CIFAR code resizes a fused map to the teacher's size before the last convolution. This is done here too if the
  sizes differ.
- As in the published code, D chooses its pooling sizes by the height of a map alone, and a size that is left out does
  not halve the weight of the next one.
- The published code does not register its RetinaNet, so its RetinaNet result can't be reproduced with this code.

Without fusion (`fusion: false`) each pair of levels has its own block. Student maps are resized between the two
convolutions of the block, and the terms are added up over pairs. With `paths: review` there are n (n + 1) / 2 pairs, so
use a smaller weight. The blocks are learned, so in general the loss is not 0 for a teacher with the student's own
weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field
from torch import Tensor, nn

from detdistill.losses import hierarchical_context
from detdistill.methods.method import Method, Weight, require
from detdistill.methods.reviewkd_fusion import FusedLevels, SeparateLevels
from detdistill.methods.shared.levels import LevelConfig, PairedLevels, level_at, pair_widths, require_two_cells
from detdistill.types import DetectorInfo, DetectorOutput, Targets, TrainState

Paths = Literal["review", "same", "deeper", "all"]

# Whether the teacher level at index t teaches the student level at index s. Indices count from fine to coarse.
TEACHES: dict[Paths, Callable[[int, int], bool]] = {
    "review": lambda s, t: t <= s,
    "same": lambda s, t: t == s,
    "deeper": lambda s, t: t >= s,
    "all": lambda s, t: True,
}


@dataclass(frozen=True)
class ReviewKDConfig(LevelConfig):
    """weight: weight of the sum over levels.
    mid_channels: number of channels at which levels are fused; none: the student's (of its coarsest level), at most
        512. Published: 256.
    paths: the teacher levels that teach a student level. `review`: the level of equal stride and every finer one, as
        published. `same`: the level of equal stride. `deeper`: the level of equal stride and every coarser one, the
        reverse of a review. `all`: every level.
    fusion: true: a teacher level is compared once, with all the student levels that it teaches fused into one map. This
        is possible for `paths: review`; `paths: same` has nothing to fuse. false: a teacher level is compared with each
        of these student levels separately.
    context: also compare pooled maps; false: mean squares only.
    resize: `student` resizes the student's maps in their blocks, to the nearest cell; `teacher` resizes the teacher's.
    The other options: see `LevelConfig`.
    """

    weight: Weight = 1.0
    mid_channels: Annotated[int, Field(ge=1)] | None = None
    paths: Paths = "review"
    fusion: bool = True
    context: bool = True


class ReviewKD(Method):
    """See the module docstring. Terms: `features`."""

    name = "reviewkd"
    group = "neck features"
    paper = "arXiv:2104.09044"
    copies = "neck features, each level fused with the deeper ones"
    requires = "a level with the same stride on both sides"
    reads = "neck features"
    learns = "a fusion block per level: two convolutions with batch norm, and an attention"
    unlabeled = True
    Config = ReviewKDConfig

    def __init__(self, config: ReviewKDConfig, levels: PairedLevels, channels: Sequence[tuple[int, int]]):
        """levels: paired levels without connectors. channels: of the student's and the teacher's level of each pair."""
        super().__init__()
        self.config, self.levels = config, levels
        self.need = self.student_need = levels.need
        count = len(levels.strides)
        pairs = level_pairs(config.paths, count)
        student_levels, teacher_levels = [own for own, _ in channels], [other for _, other in channels]
        middle = config.mid_channels or min(512, student_levels[-1])
        self.blocks: FusedLevels | SeparateLevels
        self.teacher_indices: list[int]  # index of the teacher level that each output of the blocks is compared with
        if config.fusion and config.paths == "review":
            self.blocks = FusedLevels(student_levels, middle, teacher_levels)
            self.teacher_indices = list(range(count))
        else:
            self.blocks = SeparateLevels(student_levels, middle, teacher_levels, pairs)
            self.teacher_indices = [teacher_index for _, teacher_index in pairs]

    @classmethod
    def build(cls, config: ReviewKDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError if no level can be paired, or if `fusion` is true and the paths can't be fused."""
        can_fuse = config.paths in ("review", "same")
        problem = f"paths `{config.paths}` can't be fused, because fusion goes from deep levels to finer ones"
        require(can_fuse or not config.fusion, cls.name, problem, "set methods.reviewkd.fusion to false")
        levels = PairedLevels.build(cls.name, config, student, teacher, connect=lambda *_: nn.Identity())
        return cls(config, levels, pair_widths(config, levels.strides, student, teacher))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`. Raises UserError if batch norm would train on one cell."""
        student_pyramid = student_output.pyramids[self.config.pyramid]
        # Not from `self.levels`, because the blocks resize the student's maps themselves.
        student_levels = [level_at(student_pyramid, stride) for stride, _ in self.levels.strides]
        teacher_levels = [level.teacher for level in self.levels(student_output, teacher_output)]
        if self.training:
            for side, maps in enumerate((student_levels, teacher_levels)):
                require_two_cells(self.name, maps, [strides[side] for strides in self.levels.strides])
        shapes = [(level.shape[-2], level.shape[-1]) for level in teacher_levels]
        maps = self.blocks(student_levels, shapes)
        target_maps = [teacher_levels[index] for index in self.teacher_indices]
        sizes = (4, 2, 1) if self.config.context else ()
        return {"features": self.config.weight * hierarchical_context(maps, target_maps, sizes)}


def level_pairs(paths: Paths, count: int) -> list[tuple[int, int]]:
    """Returns (student index, teacher index) of each pair of the `count` levels, counted from fine to coarse."""
    teaches = TEACHES[paths]
    return [(student, teacher) for student in range(count) for teacher in range(count) if teaches(student, teacher)]
