"""Outputs of detectors that were never built, drawn at random in the true sizes: what `losses.py` measures losses on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from detdistill.geometry import atss_assign, cell_points, centers, pool_rois, to_boxes
from detdistill.types import (
    Assignment,
    DetectorInfo,
    DetectorOutput,
    EdgeInfo,
    GridInfo,
    Layout,
    Predictions,
    ProposalInfo,
    Proposals,
    Pyramid,
    Targets,
    TowerInfo,
    Towers,
    TowerState,
)

STRIDES = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Setting:
    """Sizes of what is drawn, and how it is measured. height, width: of the batch in pixels. boxes, rois: of an image."""

    height: int = 800
    width: int = 1088
    channels: int = 256
    classes: int = 80
    boxes: int = 20
    rois: int = 512
    bins: int = 17
    embedding: int = 1024
    depth: int = 4
    repeats: int = 5
    device: str = "cpu"

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        return tuple((-(-self.height // stride), -(-self.width // stride)) for stride in STRIDES)


def info(setting: Setting, form: str) -> DetectorInfo:
    """Of a GFL, or of a Faster R-CNN on the same levels."""
    names, necks = tuple(f"class {index}" for index in range(setting.classes)), {"neck": setting.channels}
    if form == "dense":
        cells = tuple(((8.0 * stride, 8.0 * stride),) for stride in STRIDES)
        grid = GridInfo(anchors_per_cell=1, assigner="atss", cell_anchors=cells)
        towers = TowerInfo(setting.depth, setting.channels)
        return DetectorInfo("gfl", names, STRIDES, necks, "sigmoid", grid, towers, EdgeInfo(setting.bins))
    shapes = [(2**0.5, 0.5**0.5), (1.0, 1.0), (0.5**0.5, 2**0.5)]
    cells = tuple(tuple((8 * stride * w, 8 * stride * h) for w, h in shapes) for stride in STRIDES)
    grid = GridInfo(anchors_per_cell=3, assigner="rpn", cell_anchors=cells)
    proposals = ProposalInfo(STRIDES[:4], (10.0, 10.0, 5.0, 5.0), setting.embedding)
    return DetectorInfo("faster_rcnn", names, STRIDES, necks, "softmax", grid, proposals=proposals)


class Drawn:
    """Outputs of one detector on the batch, from a seed. With `learns` they are leaves that ask for gradients."""

    def __init__(self, setting: Setting, info: DetectorInfo, targets: Targets, seed: int, learns: bool):
        self.setting, self.info, self.targets, self.learns = setting, info, targets, learns
        self.device = torch.device(setting.device)
        self.generator = torch.Generator().manual_seed(seed)
        self.leaves: list[Tensor] = []
        height, width = setting.height, setting.width
        self.sizes = torch.tensor([[height, width], [height * 24 // 25, width * 16 // 17]], device=self.device)
        self.layout = Layout(setting.shapes, STRIDES, info.grid.anchors_per_cell)

    def draw(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        """Normal numbers on the device."""
        return self.keep((torch.randn(*shape, generator=self.generator) * scale + shift).to(self.device))

    def keep(self, values: Tensor) -> Tensor:
        """The values as one of the output's leaves."""
        values = values.detach().requires_grad_(self.learns)
        self.leaves.append(values)
        return values

    def pyramid(self) -> Pyramid:
        levels = tuple(self.draw(2, self.setting.channels, rows, columns) for rows, columns in self.setting.shapes)
        return Pyramid(levels, STRIDES, self.sizes, self.anchors())

    def anchors(self) -> tuple[Tensor, ...]:
        """(H, W, A, 4) of each level."""
        parts = []
        for (rows, columns), stride, cell in zip(self.setting.shapes, STRIDES, self.info.cell_anchors, strict=True):
            half = torch.tensor(cell, device=self.device) / 2
            points = cell_points(rows, columns, stride, 0.0, self.device)[:, :, None]
            parts.append(torch.cat([points - half, points + half], dim=-1))
        return tuple(parts)

    def dense(self) -> DetectorOutput:
        """What a GFL says."""
        setting, pyramid = self.setting, self.pyramid()
        flat = [level.flatten(0, 2) for level in pyramid.anchors or ()]
        points = centers(torch.cat(flat))
        strides = torch.cat(
            [points.new_full((count, 1), stride) for count, stride in zip(self.layout.counts, STRIDES, strict=True)]
        )
        count = len(points)
        valid = self.layout.valid(self.sizes)

        def assign(targets: Targets) -> Assignment:
            matched = torch.stack([atss_assign(flat, boxes) for boxes in targets.boxes])
            return assignment(matched, valid)

        def boxes(edges: Tensor) -> Tensor:
            bins = torch.arange(setting.bins, device=edges.device, dtype=edges.dtype)
            return to_boxes(points, (edges.softmax(-1) * bins).sum(-1) * strides)

        edges = self.draw(2, count, 4, setting.bins)
        logits = self.draw(2, count, setting.classes, scale=2, shift=-4)
        stage = Predictions(
            logits, "sigmoid", self.keep(boxes(edges)), valid, self.layout, edges=edges, assignment=assign(self.targets)
        )
        return DetectorOutput({"neck": pyramid}, (stage,), towers=self.towers(boxes, valid), assign=assign)

    def towers(self, boxes: Callable[[Tensor], Tensor], valid: Tensor) -> Towers:
        """States of all depths; resume: the activation and one 1x1 convolution for each kind of prediction."""
        setting = self.setting
        states = {}
        for depth in range(setting.depth + 1):
            maps = [tuple(self.draw(2, setting.channels, *shape) for shape in setting.shapes) for _ in range(2)]
            states[depth] = TowerState(depth, maps[0], maps[1])
        predictors = [
            (torch.randn(width, setting.channels, 1, 1, generator=self.generator) * 0.1).to(self.device)
            for width in (setting.classes, 4 * setting.bins)
        ]

        def resume(state: TowerState) -> Predictions:
            sides = zip((state.classification, state.regression), predictors, strict=True)
            logits, edges = (torch.cat([F.conv2d(m.relu(), w).flatten(2).mT for m in maps], dim=1) for maps, w in sides)
            edges = edges.unflatten(-1, (4, setting.bins))
            return Predictions(logits - 4, "sigmoid", boxes(edges), valid, self.layout, edges=edges)

        return Towers(states, resume)

    def two_stage(self) -> DetectorOutput:
        """What a Faster R-CNN says."""
        pyramid = self.pyramid()
        anchors = torch.cat([level.flatten(0, 2) for level in pyramid.anchors or ()])
        count, valid = len(anchors), self.layout.valid(self.sizes)

        def assign(targets: Targets) -> Assignment:
            return assignment(torch.stack([overlapping(anchors, boxes, 0.7) for boxes in targets.boxes]), valid)

        matched = assign(self.targets).matched
        sampled = torch.rand(2, count, generator=self.generator).to(self.device) < 256 / count
        rpn = Predictions(
            self.draw(2, count, 1, shift=-2),
            "sigmoid",
            self.keep(anchors + torch.randn(2, count, 4, generator=self.generator).to(self.device)),
            valid,
            self.layout,
            deltas=self.draw(2, count, 4),
            assignment=assignment(
                matched.masked_fill(~sampled & (matched < 0), -1), valid & (sampled | (matched >= 0)), deltas=True
            ),
        )
        boxes = torch.stack([self.regions(own) for own in self.targets.boxes])
        roi = self.second_stage(boxes)
        classify = self.classifier(pyramid)
        return DetectorOutput(
            {"neck": pyramid}, (rpn, roi), proposals=Proposals(boxes, roi.valid, classify), assign=assign
        )

    def regions(self, boxes: Tensor) -> Tensor:
        """(rois, 4): a quarter around the ground truth (G, 4), the rest anywhere."""
        rois = self.setting.rois
        near = boxes[torch.arange(rois // 4) % len(boxes)]
        sides = (near[:, 2:] - near[:, :2]).repeat(1, 2)
        near = near + sides * 0.05 * torch.randn(len(near), 4, generator=self.generator).to(self.device)
        return torch.cat([near, random_boxes(rois - len(near), self.setting, self.generator).to(self.device)])

    def second_stage(self, boxes: Tensor) -> Predictions:
        setting, rois = self.setting, self.setting.rois
        matched = torch.stack(
            [overlapping(own, given, 0.5) for own, given in zip(boxes, self.targets.boxes, strict=True)]
        )
        valid = torch.ones(2, rois, dtype=torch.bool, device=self.device)
        return Predictions(
            self.draw(2, rois, setting.classes),
            "softmax",
            boxes,
            valid,
            background=self.draw(2, rois, shift=3),
            deltas=self.draw(2, rois, setting.classes, 4),
            embeddings=self.draw(2, rois, setting.embedding),
            assignment=assignment(matched, valid, deltas=True),
        )

    def classifier(self, own: Pyramid) -> Callable[..., Predictions]:
        setting, outputs = self.setting, (self.setting.classes, 1, 4 * self.setting.classes)
        torch.manual_seed(0)
        body = nn.Linear(setting.channels, setting.embedding).to(self.device).requires_grad_(False)
        heads = [nn.Linear(setting.embedding, width).to(self.device).requires_grad_(False) for width in outputs]

        def classify(boxes: Tensor, pyramid: Pyramid | None = None) -> Predictions:
            levels = (pyramid or own).levels[:4]
            pooled = pool_rois(levels, STRIDES[: len(levels)], list(boxes)).mean((2, 3))
            embeddings = body(pooled).relu().unflatten(0, boxes.shape[:2])
            logits, background, deltas = (head(embeddings) for head in heads)
            valid = (boxes[..., 2:] > boxes[..., :2]).all(-1)
            more = {"background": background[..., 0], "deltas": deltas.unflatten(-1, (-1, 4)), "embeddings": embeddings}
            return Predictions(logits, "softmax", boxes, valid, **more)

        return classify


def overlapping(boxes: Tensor, targets: Tensor, least: float) -> Tensor:
    """(n,): the ground truth each box overlaps most, -1 where by less than `least`."""
    best, index = box_iou(boxes, targets).max(1)
    return torch.where(best >= least, index, -1)


def assignment(matched: Tensor, valid: Tensor, deltas: bool = False) -> Assignment:
    """Of matches (B, N); with `deltas` codes of 0.1 for the positives."""
    positive = matched >= 0
    codes = positive[..., None].float().expand(-1, -1, 4) * 0.1 if deltas else None
    return Assignment(matched, valid, positive.sum(1).clamp(min=1).sum().float(), deltas=codes)


def random_boxes(count: int, setting: Setting, generator: torch.Generator) -> Tensor:
    """(count, 4), with sides from 1/50 to a half of the second image's."""
    limit = torch.tensor([setting.width * 16 // 17, setting.height * 24 // 25])
    sides = limit * 0.5 * 25 ** -torch.rand(count, 2, generator=generator)
    corner = (limit - sides) * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + sides], dim=1)
