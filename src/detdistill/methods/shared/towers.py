"""The towers of dense heads, for methods that compare features at a depth of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from torch import Tensor, nn

from detdistill.methods.method import require
from detdistill.methods.shared.levels import Level, LevelConfig, PairedLevels
from detdistill.types import DetectorInfo, DetectorOutput, Need, Pyramid, required

BRANCHES = ("classification tower", "regression tower")


def require_towers(
    method: str,
    student: DetectorInfo,
    teacher: DetectorInfo,
    remedy: str = "take retinanet, fcos, atss or gfl for both",
) -> None:
    """Raises UserError unless both are dense heads."""
    for side, info in (("student", student), ("teacher", teacher)):
        require(info.towers is not None, method, f"the {side} ({info.kind}) has no towers", remedy)


def tower_place(method: str, depth: int, side: str, info: DetectorInfo, remedy: str) -> int:
    """The depth from 0, the neck; a negative one is from the tower's end. Raises UserError where the tower of `side` ends before."""
    there = required(info.towers).depth
    place = depth if depth >= 0 else there + depth
    require(
        0 <= place <= there,
        method,
        f"depth {depth} is beyond the {side}'s towers, which have {there} convolutions",
        remedy,
    )
    return place


class PairedTowers(nn.Module):
    """Paired levels of both towers, at one depth of each side, after its activation. Its connectors are learned with the student."""

    def __init__(self, branches: Sequence[PairedLevels], depths: tuple[int, int]):
        """branches: of BRANCHES. depths: (student, teacher), from 0, the neck."""
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.depths = depths
        self.student_need, self.need = (Need(towers=frozenset({depth})) for depth in depths)

    @classmethod
    def build(cls, method: str, config: LevelConfig, depth: int, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """depth: of both sides; negative: from each one's end. Raises UserError as `require_towers`, `tower_place` and `PairedLevels.build`."""
        require_towers(method, student, teacher)
        remedy = f"set methods.{method}.depth"
        depths = (
            tower_place(method, depth, "student", student, remedy),
            tower_place(method, depth, "teacher", teacher, remedy),
        )
        mine, theirs = (
            replace(info, channels=dict.fromkeys(BRANCHES, required(info.towers).channels))
            for info in (student, teacher)
        )
        return cls(
            [PairedLevels.build(method, replace(config, pyramid=branch), mine, theirs) for branch in BRANCHES], depths
        )

    def forward(self, student_output: DetectorOutput, teacher_output: DetectorOutput) -> list[Level]:
        """The pairs, fine to coarse: those of the classification tower, then those of the regression tower."""
        sides = [
            _tower_pyramids(output, depth)
            for output, depth in zip((student_output, teacher_output), self.depths, strict=True)
        ]
        return [level for branch in self.branches for level in branch(*sides)]


def _tower_pyramids(output: DetectorOutput, depth: int) -> DetectorOutput:
    """The output with its towers at `depth` for pyramids."""
    neck, state = output.pyramids["neck"], required(output.towers).states[depth]

    def pyramid(levels: Sequence[Tensor]) -> Pyramid:
        return replace(
            neck, levels=tuple(level.relu() if depth else level for level in levels)
        )  # the neck has no activation

    return replace(
        output, pyramids=dict(zip(BRANCHES, map(pyramid, (state.classification, state.regression)), strict=True))
    )
