"""FGFI: imitation of features near objects. Wang et al., CVPR 2019, arXiv:1906.03609.

    L = weight / (2 N) * sum over cells of the region and channels of (a(S) - T)^2,    N = number of cells of the region in the batch

A cell is in the region where an anchor of it overlaps an object by more than `factor` times the best that any anchor of the map reaches with that
object. a is a 3x3 convolution on the student's level, also where the widths agree. It reads no head and no class.

One map in the paper, a pyramid here. By its authors a level learns near the objects that belong to it; their rule for that is not published,
`geometry.box_levels` is FPN's. The sum over channels is the paper's and goes with its weight, 0.01, on each level, levels added. `reduction:
defeat` is what the DeFeat code made of it: divided by the channels too, mean over levels, with weight 3. Only the published runs, on maps behind
a ReLU, had use for the ReLU behind a: a pyramid's levels are signed, so it is an option. The published code gives boxes and anchors a
pixel more of width (`legacy`), and turns an empty region into NaN; here it gives 0. It is silent for the first 400 steps: the preset lets the
weight rise over these.

Anchors are the student's own, as there. A map without them, of an anchor-free or a set-predicting detector, is given those an FPN's RPN has: 8
strides wide, of ratios 0.5, 1 and 2, around each cell's middle (`geometry.synthetic_anchors`). Ours too: cells that begin outside their
image count neither for a region nor for the best overlap, so that padding moves nothing.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from detdistill.distributed import mean_over_processes
from detdistill.geometry import box_levels, cell_points, covered_cells, imitation_cells, synthetic_anchors
from detdistill.losses import masked_squares
from detdistill.methods.method import Method, Weight, require
from detdistill.methods.shared.levels import Level, LevelConfig, PairedLevels
from detdistill.types import DetectorInfo, DetectorOutput, Layout, Targets, TrainState


@dataclass(frozen=True)
class FGFIConfig(LevelConfig):
    """weight: of the sum over levels. reduction: `paper` or `defeat`, see the module's head; each goes with its own weight.
    region: `imitation`; `full`: every cell of the image; `inside`: cells that share area with a box. factor: of the best overlap, 0..1: 0
    takes every cell whose anchors touch the object, 1 none. levels_of_a_box: it counts on its `own` level or on `all`. anchors: the
    `student`'s or the `teacher`'s where they have some, else and with `synthetic` made from the stride. legacy, relu: see the module's head.
    The others: see `methods.shared.levels.LevelConfig`."""

    weight: Weight = 0.01
    reduction: Literal["paper", "defeat"] = "paper"
    region: Literal["imitation", "full", "inside"] = "imitation"
    factor: Annotated[float, Field(ge=0, le=1)] = 0.5
    levels_of_a_box: Literal["own", "all"] = "own"
    anchors: Literal["student", "teacher", "synthetic"] = "student"
    legacy: bool = False
    relu: bool = False


class FGFI(Method):
    """See the module's head. Its term: `features`."""

    name = "fgfi"
    group = "neck features"
    paper = "arXiv:1906.03609"
    reads = "neck features, anchors, boxes of the ground truth"
    learns = "a 3x3 convolution a level"
    gain = "GFL R50 40.1 to 41.1 (GFL R101)"
    Config = FGFIConfig

    def __init__(self, config: FGFIConfig, levels: PairedLevels, has_anchors: bool):
        """has_anchors: the side whose anchors are asked for has some."""
        super().__init__()
        self.config, self.levels, self.has_anchors = config, levels, has_anchors
        self.need = self.student_need = levels.need

    @classmethod
    def build(cls, config: FGFIConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError where no level can be paired, and for a teacher's anchors where it has none."""
        lacking = f"the teacher ({teacher.kind}) has no anchors"
        require(
            config.anchors != "teacher" or bool(teacher.cell_anchors),
            cls.name,
            lacking,
            "set methods.fgfi.anchors to synthetic",
        )
        levels = PairedLevels.build(
            cls.name, config, student, teacher, lambda mine, theirs: connector(mine, theirs, config.relu)
        )
        side = {"student": student, "teacher": teacher}.get(config.anchors)
        return cls(
            config, levels, side is not None and bool(side.cell_anchors)
        )  # a point head's pyramid has its points for anchors

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        levels = self.levels(student_output, teacher_output)
        regions = self.regions(levels, student_output, teacher_output, targets)
        squares = torch.stack(
            [
                masked_squares(level.student, level.teacher, region)
                for level, region in zip(levels, regions, strict=True)
            ]
        )
        counts = mean_over_processes(torch.stack([region.sum() for region in regions]).to(squares.dtype))
        terms = squares / (2 * counts)
        total = terms.sum() if self.config.reduction == "paper" else terms.mean() / levels[0].teacher.shape[1]
        return {"features": self.config.weight * total}

    def regions(
        self, levels: list[Level], student_output: DetectorOutput, teacher_output: DetectorOutput, targets: Targets
    ) -> list[Tensor]:
        """(B, H, W) bool of each level."""
        config, sizes = self.config, student_output.pyramids[self.config.pyramid].sizes
        boxes = torch.cat(targets.boxes)
        images = torch.cat(
            [torch.full((len(own),), index, device=boxes.device) for index, own in enumerate(targets.boxes)]
        )
        place = box_levels(boxes, [level.stride for level in levels])
        regions = []
        for level in levels:
            rows, columns = level.student.shape[-2:]
            valid = Layout(((rows, columns),), (level.stride,)).valid(sizes).unflatten(1, (rows, columns))
            kept = (place == level.index) | (config.levels_of_a_box == "all")
            own, of = boxes[kept], images[kept]
            if config.region == "imitation":
                cells = imitation_cells(
                    self._anchors(level, student_output, teacher_output), own, config.factor, config.legacy, valid[of]
                )
            else:
                cells = covered_cells(own, rows, columns, level.stride) & valid[of]
            parts = cells.split(torch.bincount(of, minlength=len(valid)).tolist())  # by image
            regions.append(valid if config.region == "full" else torch.stack([part.any(0) for part in parts]))
        return regions

    def _anchors(self, level: Level, student_output: DetectorOutput, teacher_output: DetectorOutput) -> Tensor:
        """(H, W, A, 4) of the level's stride and shape."""
        rows, columns = level.student.shape[-2:]
        pyramid = (teacher_output if self.config.anchors == "teacher" else student_output).pyramids[self.config.pyramid]
        if self.has_anchors and pyramid.anchors is not None and level.stride in pyramid.strides:
            own = pyramid.anchors[pyramid.strides.index(level.stride)]
            if own.shape[:2] == (rows, columns):
                return own
            corners = cell_points(rows, columns, level.stride, 0.0, own.device)[:, :, None]
            return own[:1, :1] + torch.cat(
                [corners, corners], dim=-1
            )  # the map took the other side's size: the same anchors, in its cells
        return synthetic_anchors(rows, columns, level.stride, device=level.student.device)


def connector(student: int, teacher: int, relu: bool) -> nn.Module:
    """Widths to a 3x3 convolution that begins near 0, as published: normal weights, cut off at 2 (`fmod`), times 1e-4; its bias as torch's."""
    convolution = nn.Conv2d(student, teacher, 3, padding=1)
    with torch.no_grad():
        convolution.weight.normal_().fmod_(2).mul_(1e-4)
    return nn.Sequential(convolution, nn.ReLU()) if relu else convolution
