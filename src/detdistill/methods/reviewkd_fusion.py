"""ReviewKD's learned blocks (arXiv:2104.09044): they adapt student levels to teacher levels, with or without fusion."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int]  # (rows, columns)


class FusionBlock(nn.Module):
    """Fuses one student level with the deeper levels by attention and maps it to the teacher's channels.

    The two attention maps are sigmoids; no softmax is taken over them. The block has no other activation. Parameter
    names and initial values are those of the published code.
    """

    def __init__(self, student_channels: int, middle: int, teacher_channels: int, fuse: bool):
        """middle: number of channels at which levels are fused. fuse: True if a deeper level's map is an input."""
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(student_channels, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.conv2 = nn.Sequential(
            nn.Conv2d(middle, teacher_channels, 3, padding=1, bias=False), nn.BatchNorm2d(teacher_channels)
        )
        self.att_conv = nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()) if fuse else None
        for block in (self.conv1, self.conv2):
            nn.init.kaiming_uniform_(cast(nn.Conv2d, block[0]).weight, a=1)

    def forward(self, student: Tensor, shape: Shape, deeper: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """student (B, C, H, W) and deeper (B, middle, h, w) -> two maps of size `shape`.

        The first map has the teacher's channels. The second has `middle` channels and is the next finer level's
        `deeper`.
        """
        fused = self.conv1(student)  # (B, middle, H, W)
        if self.att_conv is not None and deeper is not None:
            deeper = _resize_nearest(deeper, (student.shape[-2], student.shape[-1]))  # (B, middle, H, W)
            attention = self.att_conv(torch.cat([fused, deeper], dim=1))  # (B, 2, H, W)
            fused_weight, deeper_weight = attention.split(1, dim=1)  # (B, 1, H, W) each
            fused = fused * fused_weight + deeper * deeper_weight
        fused = _resize_nearest(fused, shape)  # (B, middle, *shape)
        return self.conv2(fused), fused


class FusedLevels(nn.Module):
    """Fuses each level with all deeper levels, from the deepest to the finest. `abfs.0` belongs to the deepest."""

    def __init__(self, student_channels: Sequence[int], middle: int, teacher_channels: Sequence[int]):
        """student_channels, teacher_channels: channels of each level, from fine to coarse."""
        super().__init__()
        deepest = len(student_channels) - 1
        blocks = [
            FusionBlock(student, middle, teacher, fuse=index < deepest)
            for index, (student, teacher) in enumerate(zip(student_channels, teacher_channels, strict=True))
        ]
        self.abfs = nn.ModuleList(blocks[::-1])

    def forward(self, levels: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """Maps the student's levels (B, C, H, W) to maps of the teacher's channels and shapes.

        levels, shapes (rows, columns of the teacher's levels) and the result are ordered from fine to coarse.
        """
        deeper, outputs = None, []
        for block, level, shape in zip(self.abfs, levels[::-1], shapes[::-1], strict=True):
            output, deeper = block(level, shape, deeper)
            outputs.append(output)
        return outputs[::-1]


class SeparateLevels(nn.Module):
    """One block without fusion for each pair of a student level and a teacher level."""

    def __init__(
        self,
        student_channels: Sequence[int],
        middle: int,
        teacher_channels: Sequence[int],
        pairs: Sequence[tuple[int, int]],
    ):
        """student_channels, teacher_channels: channels of each level, from fine to coarse.

        pairs: indices (student level, teacher level) into these lists.
        """
        super().__init__()
        self.pairs = tuple(pairs)
        self.blocks = nn.ModuleList(
            FusionBlock(student_channels[student_index], middle, teacher_channels[teacher_index], fuse=False)
            for student_index, teacher_index in pairs
        )

    def forward(self, levels: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """Same as `FusedLevels.forward`, but returns one map per pair."""
        outputs = []
        for block, (student_index, teacher_index) in zip(self.blocks, self.pairs, strict=True):
            output, _ = block(levels[student_index], shapes[teacher_index])
            outputs.append(output)
        return outputs


def _resize_nearest(features: Tensor, shape: Shape) -> Tensor:
    """Returns `features` (B, C, H, W) at the size `shape`."""
    return features if features.shape[-2:] == shape else F.interpolate(features, shape, mode="nearest")
