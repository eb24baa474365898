"""The levels of two pyramids, paired, with a connector on each of the student's."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from detdistill.methods.method import require
from detdistill.types import DetectorInfo, DetectorOutput, Need, Pyramid

Connect = Callable[[int, int], nn.Module]  # student's and teacher's width to a connector of one level
Strides = tuple[int, int]  # of the student's level and the teacher's


@dataclass(frozen=True)
class LevelConfig:
    """levels: how many of the paired levels, from the finest; none: all. pairing: `stride`, or `index` where a published run paired levels by
    their place in the list. resize: which side is resized, bilinearly, where sizes differ. pyramid: which maps are compared."""

    levels: Annotated[int, Field(ge=1)] | None = None
    pairing: Literal["stride", "index"] = "stride"
    resize: Literal["student", "teacher"] = "student"
    pyramid: str = "neck"


@dataclass(frozen=True, eq=False)
class Level:
    """One pair: the student's map behind its connector and the teacher's, both (B, C, H, W) of one size; no gradient to the teacher's.

    stride: pixels of the batch a cell. index: place among the pairs, from the finest. anchors (H, W, A, 4): the student's, or the
    teacher's where the map has the teacher's size and its stride; None where that detector has none.
    """

    student: Tensor
    teacher: Tensor
    stride: int
    index: int
    anchors: Tensor | None = None


def when_widths_differ(student: int, teacher: int) -> nn.Module:
    """A 1x1 convolution with a bias, or nothing where the widths agree."""
    return nn.Identity() if student == teacher else nn.Conv2d(student, teacher, 1)


def always(student: int, teacher: int) -> nn.Module:
    """A 1x1 convolution with a bias, also where the widths agree."""
    return nn.Conv2d(student, teacher, 1)


def pair_levels(method: str, config: LevelConfig, student: DetectorInfo, teacher: DetectorInfo) -> list[Strides]:
    """The strides of each pair, fine to coarse. Raises UserError where a side has no such pyramid or no level can be paired."""
    for side, info in (("student", student), ("teacher", teacher)):
        have = f"the {side} has {', '.join(info.channels)}; set methods.{method}.pyramid"
        require(config.pyramid in info.channels, method, f"no pyramid {config.pyramid!r} on the {side}", have)
    if config.pairing == "index":
        pairs = list(zip(student.strides, teacher.strides, strict=False))  # as many as both have: the published pairing
    else:
        pairs = [(stride, stride) for stride in student.strides if stride in teacher.strides]
    lacking = f"no level in common, the student's strides are {student.strides}, the teacher's {teacher.strides}"
    require(bool(pairs), method, lacking, "train the student with the teacher's --model.strides")
    return pairs[: config.levels]


class PairedLevels(nn.Module):
    """Paired levels of a student's and a teacher's pyramid. Its connectors are learned with the student."""

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
        connect: Connect = when_widths_differ,
    ) -> Self:
        """connect: makes the connector of a level from both widths. Raises UserError as `pair_levels`."""
        strides = pair_levels(method, config, student, teacher)
        widths = student.channels[config.pyramid], teacher.channels[config.pyramid]
        return cls(config, strides, [connect(*widths) for _ in strides])

    def forward(self, student_output: DetectorOutput, teacher_output: DetectorOutput) -> list[Level]:
        """The pairs, fine to coarse."""
        return list(
            self._pairs(student_output.pyramids[self.config.pyramid], teacher_output.pyramids[self.config.pyramid])
        )

    def _pairs(self, student: Pyramid, teacher: Pyramid) -> Iterator[Level]:
        for index, ((mine, theirs), connector) in enumerate(zip(self.strides, self.connectors, strict=True)):
            guess, taught = connector(level_at(student, mine)), level_at(teacher, theirs).detach()
            kept, stride = student, mine
            if guess.shape[-2:] != taught.shape[-2:]:
                if self.config.resize == "student":
                    guess, kept, stride = _resized(guess, taught), teacher, theirs
                else:
                    taught = _resized(taught, guess)
            anchors = None if kept.anchors is None else kept.anchors[kept.strides.index(stride)]
            yield Level(guess, taught, stride, index, anchors)


def require_cells(method: str, maps: Sequence[Tensor], strides: Sequence[int]) -> None:
    """Raises UserError where a map (B, C, H, W), to go through batch norm in training, is one cell in the whole batch. strides: of the maps."""
    small = next((stride for level, stride in zip(maps, strides, strict=True) if level[:, 0].numel() == 1), None)
    lacking = f"the level of stride {small} has one cell in the whole batch, which batch norm can't take"
    require(small is None, method, lacking, f"give larger images or batches, or a smaller methods.{method}.levels")


def level_at(pyramid: Pyramid, stride: int) -> Tensor:
    """The pyramid's level of this stride."""
    return pyramid.levels[pyramid.strides.index(stride)]


def _resized(level: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(level, like.shape[-2:], mode="bilinear", align_corners=False)
