"""ReviewKD: levels fused from deep to shallow copy the teacher's. Chen et al., CVPR 2021, arXiv:2104.09044.

    L = weight * sum over levels j of D(U(S_j, S_j+1..n), T_j)

U fuses the student's level j with all deeper ones (`methods.shared.fusion`), so that a teacher's level teaches the student's level of its stride
and every deeper one: knowledge is reviewed. D is `losses.hierarchical_context`. The teacher's maps stay as they are: only the student's
side has adapters. It reads no head, no box and no class. D pools over the padded map, padding included, as published.

Weights as published with Detectron2, teacher ResNet-101 and student ResNet-50: 1 for Faster R-CNN and RetinaNet, 0.8 for Mask R-CNN; smaller
students took up to 2. The published detection code fuses all five levels at 256 channels, resizes to the exact size (any size will do) and
norms each process by itself; so do we. Its CIFAR code fits a fused map to the teacher's size before the last convolution, which is done here
too where the sizes differ. As its code has it, D looks at a map's height alone to choose what it pools to, and a size it leaves out takes
no halving of the weight with it. Its RetinaNet is not registered as shipped, so that weight can't be run there.

Without fusion each pair of levels has a block of its own. Its maps are resized between the block's two convolutions, and the terms add up
over pairs: with `review`, n (n + 1) / 2 of them, so weigh less. As the blocks are learned, nothing says the loss is 0 for a teacher of
the student's own weights.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field
from torch import Tensor, nn

from detdistill.losses import hierarchical_context
from detdistill.methods.method import Method, Weight, require
from detdistill.methods.shared.fusion import FusedLevels, SeparateLevels
from detdistill.methods.shared.levels import LevelConfig, PairedLevels, level_at, require_cells
from detdistill.types import DetectorInfo, DetectorOutput, Targets, TrainState

Paths = Literal["review", "same", "deeper", "all"]


@dataclass(frozen=True)
class ReviewKDConfig(LevelConfig):
    """weight: of the sum over levels. mid_channels: width that levels are fused at; none: the student's, at most 512 (256 as published).

    paths: which teacher levels teach a student level. `review`: its own and every finer one, as published. `same`: its own alone. `deeper`:
    its own and every coarser one, the reverse of a review. `all`: each of them. fusion: a teacher level is compared once, with all the
    student levels it teaches fused; false: with each by itself, so that only `review` can be fused, and `same` has nothing to fuse.
    context: compare pooled maps too; false: mean squares alone. resize: the student's maps within their blocks, to the nearest cell, or the
    teacher's. The others: see `methods.shared.levels.LevelConfig`."""

    weight: Weight = 1.0
    mid_channels: Annotated[int, Field(ge=1)] | None = None
    paths: Paths = "review"
    fusion: bool = True
    context: bool = True


class ReviewKD(Method):
    """See the module's head. Its term: `features`."""

    name = "reviewkd"
    group = "neck features"
    paper = "arXiv:2104.09044"
    reads = "neck features"
    learns = "a fusion block a level: two convolutions with batch norm, and an attention"
    Config = ReviewKDConfig

    def __init__(self, config: ReviewKDConfig, levels: PairedLevels, widths: tuple[int, int]):
        """levels: without connectors. widths: (student, teacher)."""
        super().__init__()
        self.config, self.levels = config, levels
        self.need = self.student_need = levels.need
        count = len(levels.strides)
        self.pairs = taught_pairs(config.paths, count)
        fused = config.fusion and config.paths == "review"
        students, teachers = ([width] * count for width in widths)
        middle = config.mid_channels or min(512, widths[0])
        self.blocks = (
            FusedLevels(students, middle, teachers) if fused else SeparateLevels(students, middle, teachers, self.pairs)
        )
        self.lessons = (
            list(range(count)) if fused else [theirs for _, theirs in self.pairs]
        )  # the teacher's level of each map

    @classmethod
    def build(cls, config: ReviewKDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError where no level can be paired, and for paths that can't be fused."""
        lacking = f"paths `{config.paths}` can't be fused: fusion goes from deep levels to finer ones"
        require(
            not config.fusion or config.paths in ("review", "same"),
            cls.name,
            lacking,
            "set methods.reviewkd.fusion to false",
        )
        levels = PairedLevels.build(cls.name, config, student, teacher, connect=lambda *_: nn.Identity())
        return cls(config, levels, (student.channels[config.pyramid], teacher.channels[config.pyramid]))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        taught = [level.teacher for level in self.levels(student_output, teacher_output)]
        own = [
            level_at(student_output.pyramids[self.config.pyramid], mine) for mine, _ in self.levels.strides
        ]  # the blocks fit them
        if self.training:
            for side, maps in enumerate((own, taught)):
                require_cells(self.name, maps, [pair[side] for pair in self.levels.strides])
        maps = self.blocks(own, [(level.shape[-2], level.shape[-1]) for level in taught])
        lessons = [taught[index] for index in self.lessons]
        sizes = (4, 2, 1) if self.config.context else ()
        return {"features": self.config.weight * hierarchical_context(maps, lessons, sizes)}


def taught_pairs(paths: Paths, count: int) -> list[tuple[int, int]]:
    """Places of student and teacher level in each pair, of `count` levels, fine to coarse."""
    chosen = {
        "review": lambda s, t: t <= s,
        "same": lambda s, t: t == s,
        "deeper": lambda s, t: t >= s,
        "all": lambda s, t: True,
    }[paths]
    return [(mine, theirs) for mine in range(count) for theirs in range(count) if chosen(mine, theirs)]
