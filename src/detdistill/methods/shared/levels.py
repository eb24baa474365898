"""Pairs the levels of the student's and the teacher's pyramid, with one learned connector per student level."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from detdistill.methods.method import require
from detdistill.types import DetectorInfo, DetectorOutput, Need, Pyramid

Connect = Callable[[int, int], nn.Module]  # (student's channels, teacher's channels) -> connector of one level
Strides = tuple[int, int]  # (stride of the student's level, stride of the teacher's level)


@dataclass(frozen=True)
class LevelConfig:
    """levels: number of level pairs to compare, starting at the finest; none: all.
    pairing: `stride` pairs levels of equal stride; `index` pairs levels of equal position, as some published runs do.
    resize: the side whose map is resized (bilinear) if the two maps of a pair differ in size.
    pyramid: name of the pyramid to compare, such as `neck` or `memory`.
    """

    levels: Annotated[int, Field(ge=1)] | None = None
    pairing: Literal["stride", "index"] = "stride"
    resize: Literal["student", "teacher"] = "student"
    pyramid: str = "neck"


@dataclass(frozen=True, eq=False)
class Level:
    """One pair of maps (B, C, H, W) of equal height and width. The teacher's map is detached.

    student: the student's map after its connector.
    teacher: the teacher's map.
    stride: stride of the two maps, in pixels of the padded batch per cell.
    index: position among the pairs, starting at the finest.
    anchors: (H, W, A, 4). They are the student's, or the teacher's if the student's map was resized to the teacher's
        size and stride. None if that detector has no anchors.
    """

    student: Tensor
    teacher: Tensor
    stride: int
    index: int
    anchors: Tensor | None = None


def when_channels_differ(student_channels: int, teacher_channels: int) -> nn.Module:
    """Returns a 1x1 convolution with a bias, or the identity if the channel counts are equal."""
    if student_channels == teacher_channels:
        return nn.Identity()
    return nn.Conv2d(student_channels, teacher_channels, 1)


def always(student_channels: int, teacher_channels: int) -> nn.Module:
    """Returns a 1x1 convolution with a bias, even if the channel counts are equal."""
    return nn.Conv2d(student_channels, teacher_channels, 1)


def near_zero_convolution(student_channels: int, teacher_channels: int) -> nn.Module:
    """Returns a 3x3 convolution whose initial weights are near 0, as in the code of FGFI and DeFeat.

    A weight is 1e-4 times a standard normal sample, reduced to (-2, 2) by `fmod`. The bias keeps PyTorch's default.
    """
    convolution = nn.Conv2d(student_channels, teacher_channels, 3, padding=1)
    with torch.no_grad():
        convolution.weight.normal_().fmod_(2).mul_(1e-4)
    return convolution


def pair_levels(method: str, config: LevelConfig, student: DetectorInfo, teacher: DetectorInfo) -> list[Strides]:
    """Returns the two strides of each pair, from fine to coarse.

    Raises UserError if a side has no pyramid `config.pyramid` or if no level can be paired.
    """
    for side, info in (("student", student), ("teacher", teacher)):
        problem = f"no pyramid {config.pyramid!r} on the {side}"
        remedy = f"the {side} has {', '.join(info.channels)}: set methods.{method}.pyramid"
        require(config.pyramid in info.channels, method, problem, remedy)
    if config.pairing == "index":
        # Not strict: the published runs compare as many levels as both pyramids have.
        pairs = list(zip(student.strides, teacher.strides, strict=False))
    else:
        pairs = [(stride, stride) for stride in student.strides if stride in teacher.strides]
    problem = f"no level in common: the student's strides are {student.strides}, the teacher's {teacher.strides}"
    require(bool(pairs), method, problem, "train the student with the teacher's --model.strides")
    return pairs[: config.levels]


def pair_widths(
    config: LevelConfig, strides: Sequence[Strides], student: DetectorInfo, teacher: DetectorInfo
) -> list[tuple[int, int]]:
    """Returns the channels of the student's and the teacher's level of each pair. strides: as from `pair_levels`."""
    name = config.pyramid
    return [(student.width(name, own), teacher.width(name, other)) for own, other in strides]


class PairedLevels(nn.Module):
    """Paired levels of the student's and the teacher's pyramid. The connectors are learned with the student."""

    def __init__(self, config: LevelConfig, strides: Sequence[Strides], connectors: Sequence[nn.Module]):
        super().__init__()
        self.config = config
        self.strides = tuple(strides)
        self.connectors = nn.ModuleList(connectors)
        self.need = self.student_need = Need(pyramids=frozenset({config.pyramid}))

    @classmethod
    def build(
        cls,
        method: str,
        config: LevelConfig,
        student: DetectorInfo,
        teacher: DetectorInfo,
        connect: Connect = when_channels_differ,
    ) -> Self:
        """Builds one connector per pair with `connect`. Raises UserError in the same cases as `pair_levels`."""
        strides = pair_levels(method, config, student, teacher)
        widths = pair_widths(config, strides, student, teacher)
        return cls(config, strides, [connect(*pair) for pair in widths])

    def forward(self, student_output: DetectorOutput, teacher_output: DetectorOutput) -> list[Level]:
        """Returns the pairs, from fine to coarse."""
        student_pyramid = student_output.pyramids[self.config.pyramid]
        teacher_pyramid = teacher_output.pyramids[self.config.pyramid]
        return [self._pair(index, student_pyramid, teacher_pyramid) for index in range(len(self.strides))]

    def _pair(self, index: int, student_pyramid: Pyramid, teacher_pyramid: Pyramid) -> Level:
        student_stride, teacher_stride = self.strides[index]
        student_level = self.connectors[index](level_at(student_pyramid, student_stride))
        teacher_level = level_at(teacher_pyramid, teacher_stride).detach()
        pyramid, stride = student_pyramid, student_stride  # the pyramid and the stride whose map size the pair has
        if student_level.shape[-2:] != teacher_level.shape[-2:]:
            if self.config.resize == "student":
                student_level = _resized(student_level, teacher_level)
                pyramid, stride = teacher_pyramid, teacher_stride
            else:
                teacher_level = _resized(teacher_level, student_level)
        anchors = None if pyramid.anchors is None else pyramid.anchors[pyramid.strides.index(stride)]
        return Level(student_level, teacher_level, stride, index, anchors)


def require_two_cells(method: str, maps: Sequence[Tensor], strides: Sequence[int]) -> None:
    """Raises UserError if a map (B, C, H, W) has one cell in the whole batch: batch norm can't train on it.

    strides: stride of each map.
    """
    for level, stride in zip(maps, strides, strict=True):
        problem = f"the level of stride {stride} has one cell in the whole batch, which is too few for batch norm"
        remedy = f"use larger images, a larger batch, or a smaller methods.{method}.levels"
        require(level[:, 0].numel() != 1, method, problem, remedy)


def level_at(pyramid: Pyramid, stride: int) -> Tensor:
    """Returns the pyramid's level (B, C, H, W) of this stride."""
    return pyramid.levels[pyramid.strides.index(stride)]


def _resized(level: Tensor, like: Tensor) -> Tensor:
    """Returns `level` at the height and width of `like`."""
    return F.interpolate(level, like.shape[-2:], mode="bilinear", align_corners=False)
