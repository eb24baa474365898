"""ReviewKD's connectors (arXiv:2104.09044): blocks that make a student's level fit a teacher's, alone or fused with all deeper levels."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int]  # rows, columns


class FusionBlock(nn.Module):
    """Attention-based fusion of one level: to `middle` channels, mixed with what comes from the deeper levels, to the teacher's channels.

    There is no activation but the attention's two sigmoids, and no softmax between these. Names and initial values are the published code's.
    """

    def __init__(self, student: int, middle: int, teacher: int, fuse: bool):
        """student, teacher: widths. fuse: a deeper level's map comes in."""
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(student, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.conv2 = nn.Sequential(nn.Conv2d(middle, teacher, 3, padding=1, bias=False), nn.BatchNorm2d(teacher))
        self.att_conv = nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()) if fuse else None
        for block in (self.conv1, self.conv2):
            nn.init.kaiming_uniform_(cast(nn.Conv2d, block[0]).weight, a=1)

    def forward(self, student: Tensor, shape: Shape, deeper: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """student (B, C, H, W), deeper (B, middle, h, w) to a map of the teacher's width and of `shape`, and to what goes on to the next
        finer level (B, middle, *shape)."""
        mixed = self.conv1(student)
        if self.att_conv is not None and deeper is not None:
            deeper = _nearest(deeper, (student.shape[-2], student.shape[-1]))
            own, other = self.att_conv(torch.cat([mixed, deeper], dim=1)).split(1, dim=1)  # (B, 1, H, W) each
            mixed = mixed * own + deeper * other
        mixed = _nearest(mixed, shape)
        return self.conv2(mixed), mixed


class FusedLevels(nn.Module):
    """From the deepest level to the finest, each fused with all deeper ones. `abfs.0` is the deepest."""

    def __init__(self, students: Sequence[int], middle: int, teachers: Sequence[int]):
        """students, teachers: widths, fine to coarse."""
        super().__init__()
        widths = list(zip(students, teachers, strict=True))
        blocks = [
            FusionBlock(mine, middle, theirs, fuse=index < len(widths) - 1)
            for index, (mine, theirs) in enumerate(widths)
        ]
        self.abfs = nn.ModuleList(blocks[::-1])

    def forward(self, levels: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """levels (B, C, H, W), shapes: the teacher's (rows, columns); both fine to coarse, and so is what comes out."""
        deeper, fused = None, []
        for block, level, shape in zip(self.abfs, levels[::-1], shapes[::-1], strict=True):
            out, deeper = block(level, shape, deeper)
            fused.append(out)
        return fused[::-1]


class SeparateLevels(nn.Module):
    """One block, unfused, for each pair of a student's and a teacher's level."""

    def __init__(self, students: Sequence[int], middle: int, teachers: Sequence[int], pairs: Sequence[tuple[int, int]]):
        """students, teachers: widths, fine to coarse. pairs: places in these lists, of student and teacher."""
        super().__init__()
        self.pairs = tuple(pairs)
        self.blocks = nn.ModuleList(
            FusionBlock(students[mine], middle, teachers[theirs], fuse=False) for mine, theirs in pairs
        )

    def forward(self, levels: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """As `FusedLevels.forward`, but one map a pair."""
        return [
            block(levels[mine], shapes[theirs])[0]
            for block, (mine, theirs) in zip(self.blocks, self.pairs, strict=True)
        ]


def _nearest(features: Tensor, shape: Shape) -> Tensor:
    return features if features.shape[-2:] == shape else F.interpolate(features, shape, mode="nearest")
