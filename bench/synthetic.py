"""Random detector outputs in the sizes of real outputs. `losses.py` measures losses on them; no detector is built."""

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
    """The sizes of the outputs, and how they are measured.

    height, width: of the batch, in pixels. channels: of the neck and the towers. classes: K.
    boxes: ground truths per image. rois: regions per image of a two-stage detector.
    bins: R, per side of a box. embedding: D, the width of the features of a region.
    depth: convolutions per tower.
    repeats: rounds that are counted.
    """

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
        """(rows, columns) of each level."""
        return tuple((-(-self.height // stride), -(-self.width // stride)) for stride in STRIDES)


def make_info(setting: Setting, form: str) -> DetectorInfo:
    """The info of a GFL (`dense`), or of a Faster R-CNN on the same levels (`two_stage`)."""
    classes = tuple(f"class {index}" for index in range(setting.classes))
    channels = {"neck": setting.channels}
    if form == "dense":
        return DetectorInfo(
            "gfl",
            classes,
            STRIDES,
            channels,
            "sigmoid",
            grid=GridInfo(
                anchors_per_cell=1,
                assigner="atss",
                cell_anchors=tuple(((8.0 * stride, 8.0 * stride),) for stride in STRIDES),
            ),
            towers=TowerInfo(setting.depth, setting.channels),
            edges=EdgeInfo(setting.bins),
        )
    ratios = [(2**0.5, 0.5**0.5), (1.0, 1.0), (0.5**0.5, 2**0.5)]  # of width and height to the side of the square
    cell_anchors = tuple(tuple((8 * stride * w, 8 * stride * h) for w, h in ratios) for stride in STRIDES)
    return DetectorInfo(
        "faster_rcnn",
        classes,
        STRIDES,
        channels,
        "softmax",
        grid=GridInfo(anchors_per_cell=3, assigner="rpn", cell_anchors=cell_anchors),
        proposals=ProposalInfo(STRIDES[:4], (10.0, 10.0, 5.0, 5.0), setting.embedding),
    )


class RandomOutputs:
    """Makes the outputs of one detector for a batch of two images, from a seed.

    requires_grad: True for a student; its output tensors then receive gradients.
    leaves: all tensors of the output that can receive gradients.
    sizes: (2, 2), valid (height, width). The second image is smaller than the padded batch.
    """

    def __init__(self, setting: Setting, info: DetectorInfo, targets: Targets, seed: int, requires_grad: bool):
        self.setting, self.info, self.targets, self.requires_grad = setting, info, targets, requires_grad
        self.device = torch.device(setting.device)
        self.generator = torch.Generator().manual_seed(seed)
        self.leaves: list[Tensor] = []
        height, width = setting.height, setting.width
        self.sizes = torch.tensor([[height, width], [height * 24 // 25, width * 16 // 17]], device=self.device)
        self.layout = Layout(setting.shapes, STRIDES, info.grid.anchors_per_cell)

    def normal(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        """Normal random numbers as a leaf. scale, shift: standard deviation and mean."""
        return self.leaf((torch.randn(*shape, generator=self.generator) * scale + shift).to(self.device))

    def leaf(self, values: Tensor) -> Tensor:
        """The values, detached, as one of the leaves of the output."""
        values = values.detach().requires_grad_(self.requires_grad)
        self.leaves.append(values)
        return values

    def pyramid(self) -> Pyramid:
        """The neck's pyramid with its anchors."""
        levels = tuple(self.normal(2, self.setting.channels, rows, columns) for rows, columns in self.setting.shapes)
        return Pyramid(levels, STRIDES, self.sizes, self.anchors())

    def anchors(self) -> tuple[Tensor, ...]:
        """The anchors of each level, (H, W, A, 4)."""
        levels = []
        for (rows, columns), stride, cell in zip(self.setting.shapes, STRIDES, self.info.cell_anchors, strict=True):
            half = torch.tensor(cell, device=self.device) / 2  # (A, 2)
            points = cell_points(rows, columns, stride, 0.0, self.device)[:, :, None]  # (H, W, 1, 2)
            levels.append(torch.cat([points - half, points + half], dim=-1))
        return tuple(levels)

    def dense(self) -> DetectorOutput:
        """The output of a GFL."""
        setting, pyramid = self.setting, self.pyramid()
        level_anchors = [level.flatten(0, 2) for level in pyramid.anchors or ()]  # (H W A, 4) per level
        points = centers(torch.cat(level_anchors))  # (N, 2)
        strides = torch.cat(
            [points.new_full((count, 1), stride) for count, stride in zip(self.layout.counts, STRIDES, strict=True)]
        )
        count = len(points)
        valid = self.layout.valid(self.sizes)

        def assign(targets: Targets) -> Assignment:
            matched = torch.stack([atss_assign(level_anchors, boxes) for boxes in targets.boxes])
            return make_assignment(matched, valid)

        def decode(edges: Tensor) -> Tensor:
            """Boxes (2, N, 4) from the logits of the side distances (2, N, 4, R)."""
            bins = torch.arange(setting.bins, device=edges.device, dtype=edges.dtype)
            return to_boxes(points, (edges.softmax(-1) * bins).sum(-1) * strides)

        edges = self.normal(2, count, 4, setting.bins)
        logits = self.normal(2, count, setting.classes, scale=2, shift=-4)
        stage = Predictions(
            logits,
            "sigmoid",
            self.leaf(decode(edges)),
            valid,
            self.layout,
            edges=edges,
            assignment=assign(self.targets),
        )
        return DetectorOutput({"neck": pyramid}, (stage,), towers=self.towers(decode, valid), assign=assign)

    def towers(self, decode: Callable[[Tensor], Tensor], valid: Tensor) -> Towers:
        """Tower states of all depths. `resume` applies the activation and one 1x1 convolution per kind of prediction.

        decode: converts the logits of the side distances to boxes.
        """
        setting = self.setting
        states = {}
        for depth in range(setting.depth + 1):
            classification = tuple(self.normal(2, setting.channels, *shape) for shape in setting.shapes)
            regression = tuple(self.normal(2, setting.channels, *shape) for shape in setting.shapes)
            states[depth] = TowerState(depth, classification, regression)
        class_weights = self.predictor_weights(setting.classes)
        edge_weights = self.predictor_weights(4 * setting.bins)

        def predict(levels: tuple[Tensor, ...], weights: Tensor) -> Tensor:
            """(2, N, predictions per cell) from the maps of all levels."""
            return torch.cat([F.conv2d(level.relu(), weights).flatten(2).mT for level in levels], dim=1)

        def resume(state: TowerState) -> Predictions:
            logits = predict(state.classification, class_weights) - 4
            edges = predict(state.regression, edge_weights).unflatten(-1, (4, setting.bins))
            return Predictions(logits, "sigmoid", decode(edges), valid, self.layout, edges=edges)

        return Towers(states, resume)

    def predictor_weights(self, count: int) -> Tensor:
        """Weights of a 1x1 convolution with `count` outputs."""
        weights = torch.randn(count, self.setting.channels, 1, 1, generator=self.generator)
        return (weights * 0.1).to(self.device)

    def two_stage(self) -> DetectorOutput:
        """The output of a Faster R-CNN."""
        pyramid = self.pyramid()
        anchors = torch.cat([level.flatten(0, 2) for level in pyramid.anchors or ()])  # (N, 4)
        count, valid = len(anchors), self.layout.valid(self.sizes)

        def assign(targets: Targets) -> Assignment:
            return make_assignment(torch.stack([best_overlap(anchors, boxes, 0.7) for boxes in targets.boxes]), valid)

        matched = assign(self.targets).matched
        # About 256 anchors per image are sampled, besides the positives. The others take no part in the RPN's losses.
        sampled = torch.rand(2, count, generator=self.generator).to(self.device) < 256 / count
        rpn = Predictions(
            self.normal(2, count, 1, shift=-2),
            "sigmoid",
            self.leaf(anchors + torch.randn(2, count, 4, generator=self.generator).to(self.device)),
            valid,
            self.layout,
            deltas=self.normal(2, count, 4),
            assignment=make_assignment(matched, valid & (sampled | (matched >= 0)), with_deltas=True),
        )
        boxes = torch.stack([self.regions(image_boxes) for image_boxes in self.targets.boxes])
        roi = self.second_stage(boxes)
        classify = self.classifier(pyramid)
        proposals = Proposals(boxes, roi.valid, classify)
        return DetectorOutput({"neck": pyramid}, (rpn, roi), proposals=proposals, assign=assign)

    def regions(self, boxes: Tensor) -> Tensor:
        """(rois, 4): a quarter are ground truths (G, 4) with noise, the rest are random boxes."""
        rois = self.setting.rois
        near = boxes[torch.arange(rois // 4) % len(boxes)]
        sides = (near[:, 2:] - near[:, :2]).repeat(1, 2)
        near = near + sides * 0.05 * torch.randn(len(near), 4, generator=self.generator).to(self.device)
        return torch.cat([near, random_boxes(rois - len(near), self.setting, self.generator).to(self.device)])

    def second_stage(self, boxes: Tensor) -> Predictions:
        """The predictions for the regions (2, rois, 4), with their assignment to the targets."""
        setting, rois = self.setting, self.setting.rois
        matched = torch.stack(
            [
                best_overlap(regions, image_boxes, 0.5)
                for regions, image_boxes in zip(boxes, self.targets.boxes, strict=True)
            ]
        )
        valid = torch.ones(2, rois, dtype=torch.bool, device=self.device)
        return Predictions(
            self.normal(2, rois, setting.classes),
            "softmax",
            boxes,
            valid,
            background=self.normal(2, rois, shift=3),
            deltas=self.normal(2, rois, setting.classes, 4),
            embeddings=self.normal(2, rois, setting.embedding),
            assignment=make_assignment(matched, valid, with_deltas=True),
        )

    def classifier(self, own_pyramid: Pyramid) -> Callable[..., Predictions]:
        """`proposals.classify` with frozen weights: RoI pooling, a mean over cells, and one linear layer."""
        setting = self.setting
        torch.manual_seed(0)

        def frozen_linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs).to(self.device).requires_grad_(False)

        embed = frozen_linear(setting.channels, setting.embedding)
        class_head = frozen_linear(setting.embedding, setting.classes)
        background_head = frozen_linear(setting.embedding, 1)
        delta_head = frozen_linear(setting.embedding, 4 * setting.classes)

        def classify(boxes: Tensor, pyramid: Pyramid | None = None) -> Predictions:
            levels = (pyramid or own_pyramid).levels[:4]
            pooled = pool_rois(levels, STRIDES[: len(levels)], list(boxes)).mean((2, 3))  # (B P, C)
            embeddings = embed(pooled).relu().unflatten(0, boxes.shape[:2])  # (B, P, D)
            return Predictions(
                class_head(embeddings),
                "softmax",
                boxes,
                valid=(boxes[..., 2:] > boxes[..., :2]).all(-1),
                background=background_head(embeddings)[..., 0],
                deltas=delta_head(embeddings).unflatten(-1, (-1, 4)),  # (B, P, K, 4)
                embeddings=embeddings,
            )

        return classify


def best_overlap(boxes: Tensor, targets: Tensor, threshold: float) -> Tensor:
    """(n,): the index of the ground truth with the largest IoU for each box, -1 if this IoU is below the threshold."""
    overlaps, index = box_iou(boxes, targets).max(1)
    return torch.where(overlaps >= threshold, index, -1)


def make_assignment(matched: Tensor, valid: Tensor, with_deltas: bool = False) -> Assignment:
    """The assignment with the matches (B, N). with_deltas: box codes of 0.1 for the positives and 0 elsewhere."""
    positive = matched >= 0
    deltas = positive[..., None].float().expand(-1, -1, 4) * 0.1 if with_deltas else None
    return Assignment(matched, valid, positive.sum(1).clamp(min=1).sum().float(), deltas=deltas)


def random_boxes(count: int, setting: Setting, generator: torch.Generator) -> Tensor:
    """(count, 4) boxes inside the second image. Their sides are 1/50 to 1/2 of the image's sides."""
    limit = torch.tensor([setting.width * 16 // 17, setting.height * 24 // 25])
    sides = limit * 0.5 * 25 ** -torch.rand(count, 2, generator=generator)
    corner = (limit - sides) * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + sides], dim=1)
