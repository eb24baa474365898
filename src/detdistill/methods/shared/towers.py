"""The towers of dense heads, for methods that compare features at some depth of the towers."""

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
    remedy: str = "use retinanet, fcos, atss or gfl for both",
) -> None:
    """Raises UserError unless both detectors have a dense head with towers."""
    for side, info in (("student", student), ("teacher", teacher)):
        require(info.towers is not None, method, f"the {side} ({info.kind}) has no towers", remedy)


def resolve_depth(method: str, depth: int, side: str, info: DetectorInfo, remedy: str) -> int:
    """The depth as a number of convolutions; 0 is the neck. A negative `depth` counts from the end of the tower.

    side: `student` or `teacher`, for the message. Raises UserError if the tower has fewer convolutions.
    """
    convolutions = required(info.towers).depth
    resolved = depth if depth >= 0 else convolutions + depth
    problem = f"depth {depth} is beyond the {side}'s towers, which have {convolutions} convolutions"
    require(0 <= resolved <= convolutions, method, problem, remedy)
    return resolved


class PairedTowers(nn.Module):
    """Pairs the levels of both towers of student and teacher, each at one depth, after the activation.

    Its connectors are learned with the student.
    """

    def __init__(self, branches: Sequence[PairedLevels], depths: tuple[int, int]):
        """branches: one for each of BRANCHES. depths: of student and teacher; 0 is the neck."""
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.depths = depths
        student_depth, teacher_depth = depths
        self.student_need = Need(towers=frozenset({student_depth}))
        self.need = Need(towers=frozenset({teacher_depth}))

    @classmethod
    def build(cls, method: str, config: LevelConfig, depth: int, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """The pairs at `depth` of both detectors; a negative depth counts from the end of each tower.

        Raises UserError in the same cases as `require_towers`, `resolve_depth` and `PairedLevels.build`.
        """
        require_towers(method, student, teacher)
        remedy = f"set methods.{method}.depth"
        depths = (
            resolve_depth(method, depth, "student", student, remedy),
            resolve_depth(method, depth, "teacher", teacher, remedy),
        )
        student_branches, teacher_branches = _with_tower_channels(student), _with_tower_channels(teacher)
        branches = [
            PairedLevels.build(method, replace(config, pyramid=branch), student_branches, teacher_branches)
            for branch in BRANCHES
        ]
        return cls(branches, depths)

    def forward(self, student_output: DetectorOutput, teacher_output: DetectorOutput) -> list[Level]:
        """The pairs of the classification tower, fine to coarse, then the pairs of the regression tower."""
        student_depth, teacher_depth = self.depths
        student_pyramids = _tower_pyramids(student_output, student_depth)
        teacher_pyramids = _tower_pyramids(teacher_output, teacher_depth)
        return [level for branch in self.branches for level in branch(student_pyramids, teacher_pyramids)]


def _with_tower_channels(info: DetectorInfo) -> DetectorInfo:
    """The info with the two towers as its only pyramids."""
    return replace(info, channels=dict.fromkeys(BRANCHES, required(info.towers).channels))


def _tower_pyramids(output: DetectorOutput, depth: int) -> DetectorOutput:
    """The output with its two towers at `depth` as its only pyramids, after the activation."""
    neck = output.pyramids["neck"]
    state = required(output.towers).states[depth]

    def pyramid(levels: Sequence[Tensor]) -> Pyramid:
        activated = [level.relu() if depth else level for level in levels]  # the neck, depth 0, has no activation
        return replace(neck, levels=tuple(activated))

    pyramids = (pyramid(state.classification), pyramid(state.regression))
    return replace(output, pyramids=dict(zip(BRANCHES, pyramids, strict=True)))
