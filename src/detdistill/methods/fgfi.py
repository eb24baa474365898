"""FGFI: imitation of features near objects. Wang et al., CVPR 2019, arXiv:1906.03609.

    L = weight / (2 N) * sum over the region's cells and over channels of (a(S) - T)^2

N is the number of cells of the region in the batch. A cell is in the region if one of its anchors overlaps an object by
more than `factor` times the best overlap that any anchor of the map has with this object. a is a 3x3 convolution on the
student's level, used even if the channel counts are equal. The method reads no head and no classes.

Paper and published code:
- The paper uses one map. Here it is a pyramid. According to the authors, a level learns near the objects that belong to
  it, but their rule for this is not published. `geometry.box_levels` is FPN's rule.
- The sum over channels is the paper's, and so is its weight of 0.01. The weight applies to each level, and the levels
  are added up. `reduction: defeat` is the variant of the DeFeat code: the sum is also divided by the number of
  channels, the levels are averaged, and the weight is 3.
- The published code has a ReLU after a. It suits the published runs, whose maps also come after a ReLU. The levels of a
  pyramid have positive and negative values, so `relu` is an option here.
- The published code makes boxes and anchors one pixel wider and higher (`legacy`).
- The published code returns NaN for an empty region. Here the term is 0.
- The published code has no loss for the first 400 steps. Here the preset increases the weight over these steps.

Anchors are the student's, as published. A map without anchors, of an anchor-free or a set-prediction detector, gets the
anchors of an FPN's RPN: 8 strides wide, with ratios 0.5, 1 and 2, around the center of each cell
(`geometry.synthetic_anchors`). We added one rule: cells that begin outside their image are left out of the region and
of the best overlap, so padding changes nothing.
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
from detdistill.methods.shared.levels import Level, LevelConfig, PairedLevels, near_zero_convolution
from detdistill.types import DetectorInfo, DetectorOutput, Layout, Targets, TrainState


@dataclass(frozen=True)
class FGFIConfig(LevelConfig):
    """weight: weight of the sum over levels. It depends on `reduction`.
    reduction: `paper`: sum over channels and levels; `defeat`: mean over channels and levels, as in DeFeat's code.
    region: `imitation`: cells near objects, as published; `full`: every cell of the image; `inside`: cells that share
        area with a box.
    factor: fraction of the best overlap, in 0..1. 0 selects every cell with an anchor that touches the object, 1
        selects no cell.
    levels_of_a_box: a box is used on its `own` level or on `all` levels.
    anchors: the `student`'s or the `teacher`'s anchors, or `synthetic` anchors made from the stride. Levels without
        anchors get synthetic ones. `teacher` requires a teacher with anchors.
    legacy: make boxes and anchors one pixel wider and higher, as the published code does.
    relu: apply a ReLU after the 3x3 convolution, as the published code does.
    The other options: see `LevelConfig`.
    """

    weight: Weight = 0.01
    reduction: Literal["paper", "defeat"] = "paper"
    region: Literal["imitation", "full", "inside"] = "imitation"
    factor: Annotated[float, Field(ge=0, le=1)] = 0.5
    levels_of_a_box: Literal["own", "all"] = "own"
    anchors: Literal["student", "teacher", "synthetic"] = "student"
    legacy: bool = False
    relu: bool = False


class FGFI(Method):
    """See the module docstring. Terms: `features`."""

    name = "fgfi"
    group = "neck features"
    paper = "arXiv:1906.03609"
    copies = "neck features in cells whose anchors are near an object"
    requires = "a level with the same stride on both sides"
    reads = "neck features, anchors, ground-truth boxes"
    learns = "a 3x3 convolution per level"
    gain = "GFL R50 40.1 to 41.1 (GFL R101)"
    Config = FGFIConfig

    def __init__(self, config: FGFIConfig, levels: PairedLevels, has_anchors: bool):
        """has_anchors: True if `config.anchors` names a detector that has anchors."""
        super().__init__()
        self.config, self.levels, self.has_anchors = config, levels, has_anchors
        self.need = self.student_need = levels.need

    @classmethod
    def build(cls, config: FGFIConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError if no level can be paired, or if `anchors` is `teacher` and the teacher has none."""
        detector = {"student": student, "teacher": teacher}.get(config.anchors)  # None for synthetic anchors
        has_anchors = detector is not None and bool(detector.cell_anchors)
        problem = f"the teacher ({teacher.kind}) has no anchors"
        remedy = "set methods.fgfi.anchors to synthetic"
        require(config.anchors != "teacher" or has_anchors, cls.name, problem, remedy)

        def connect(student_channels: int, teacher_channels: int) -> nn.Module:
            convolution = near_zero_convolution(student_channels, teacher_channels)
            return nn.Sequential(convolution, nn.ReLU()) if config.relu else convolution

        levels = PairedLevels.build(cls.name, config, student, teacher, connect)
        return cls(config, levels, has_anchors)

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
        pairs = zip(levels, regions, strict=True)
        squares = torch.stack([masked_squares(level.student, level.teacher, region) for level, region in pairs])
        counts = mean_over_processes(torch.stack([region.sum() for region in regions]).to(squares.dtype))
        terms = squares / (2 * counts)  # one per level
        total = terms.sum() if self.config.reduction == "paper" else terms.mean() / levels[0].teacher.shape[1]
        return {"features": self.config.weight * total}

    def regions(
        self, levels: list[Level], student_output: DetectorOutput, teacher_output: DetectorOutput, targets: Targets
    ) -> list[Tensor]:
        """Returns the region of each level, (B, H, W) bool."""
        config = self.config
        sizes = student_output.pyramids[config.pyramid].sizes
        boxes = torch.cat(targets.boxes)  # (G, 4), all images
        image_index = [
            torch.full((len(image_boxes),), index, device=boxes.device)
            for index, image_boxes in enumerate(targets.boxes)
        ]
        images = torch.cat(image_index)  # (G,)
        own_levels = box_levels(boxes, [level.stride for level in levels])  # (G,)
        regions = []
        for level in levels:
            shape = (level.student.shape[-2], level.student.shape[-1])
            valid = Layout((shape,), (level.stride,)).valid(sizes).unflatten(1, shape)  # (B, HW) -> (B, H, W)
            if config.region == "full":
                regions.append(valid)
                continue
            is_used = (own_levels == level.index) | (config.levels_of_a_box == "all")  # (G,)
            level_boxes, level_images = boxes[is_used], images[is_used]  # (g, 4), (g,)
            if config.region == "imitation":
                anchors = self._anchors(level, student_output, teacher_output)
                cells = imitation_cells(anchors, level_boxes, config.factor, config.legacy, valid[level_images])
            else:
                cells = covered_cells(level_boxes, *shape, level.stride) & valid[level_images]
            counts = torch.bincount(level_images, minlength=len(valid))  # (B,) boxes per image
            parts = cells.split(counts.tolist())  # (g, H, W) -> B parts of (g_i, H, W)
            regions.append(torch.stack([part.any(0) for part in parts]))  # (B, H, W)
        return regions

    def _anchors(self, level: Level, student_output: DetectorOutput, teacher_output: DetectorOutput) -> Tensor:
        """Returns anchors (H, W, A, 4) for the stride and the size of the level."""
        rows, columns = level.student.shape[-2:]
        output = teacher_output if self.config.anchors == "teacher" else student_output
        pyramid = output.pyramids[self.config.pyramid]
        # `has_anchors` is tested too, because the pyramid of an anchor-free dense head stores its points as anchors.
        if not self.has_anchors or pyramid.anchors is None or level.stride not in pyramid.strides:
            return synthetic_anchors(rows, columns, level.stride, device=level.student.device)
        anchors = pyramid.anchors[pyramid.strides.index(level.stride)]  # (h, w, A, 4)
        if anchors.shape[:2] == (rows, columns):
            return anchors
        # The map was resized to the other detector's size. Repeat the anchors of the first cell in each of its cells.
        corners = cell_points(rows, columns, level.stride, 0.0, anchors.device)[:, :, None]  # (H, W, 1, 2)
        return anchors[:1, :1] + torch.cat([corners, corners], dim=-1)  # (1, 1, A, 4) + (H, W, 1, 4) -> (H, W, A, 4)
