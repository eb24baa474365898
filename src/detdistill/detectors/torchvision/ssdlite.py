"""SSDLite of torchvision on MobileNetV3, composed of its public parts. It teaches, detects, and is not built fresh.

Liu et al., arXiv:1512.02325; Sandler et al., arXiv:1801.04381. The host stretches every image to 320 x 320 pixels,
whatever its size and aspect ratio. So does this adapter, image by image without the padding of the batch, and converts
boxes back to pixels of the padded batch.

Its one stage has logits (B, N, K) and the background logit, with a softmax, and deltas (B, N, 4). N are the default
boxes on six maps. It has no layout, because a cell covers another number of pixels in each image.

The six maps have different widths and their strides do not double, so they are no pyramid for methods. The pyramid
`neck` has the finest map only, of stride 16, resampled from the stretched images to the cells of the padded batch.
Cells in the padding are 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet, SSDLiteHead
from torchvision.ops import box_iou

from detdistill.detectors.candidates import Candidates, clip
from detdistill.detectors.images import normalize
from detdistill.detectors.outputs import build_assignment
from detdistill.detectors.torchvision.roi_head import RoIColumns
from detdistill.detectors.torchvision.shared import host_anchors
from detdistill.distributed import mean_over_processes
from detdistill.types import (
    Batch,
    Detections,
    DetectorInfo,
    DetectorOutput,
    Layout,
    Need,
    Predictions,
    Pyramid,
    Targets,
)


class SSDLite(nn.Module):
    """Adapter of torchvision's SSD on MobileNetV3, `model`, whose weights and names it keeps.

    strides: of the neck's one level. columns: the host's class column of each class. None: all columns but 0, the
    background. The probability of all remaining columns is added to the background.
    """

    def __init__(
        self, model: nn.Module, classes: Sequence[str], strides: Sequence[int], columns: Sequence[int] | None = None
    ):
        super().__init__()
        assert isinstance(model, SSD)
        self.model = model
        num_columns = model.head.classification_head.num_columns
        self.columns = RoIColumns(range(1, num_columns) if columns is None else columns, num_columns)
        width, height = model.transform.fixed_size
        self.size = (height, width)
        self.info = DetectorInfo(
            kind="ssdlite",
            classes=tuple(classes),
            strides=tuple(strides),
            channels={"neck": model.backbone.features[0][-1].out_channels},
            activation="softmax",
        )

    def backbone_parameters(self) -> list[nn.Parameter]:
        """See `types.Detector`. Those of MobileNetV3, without the four extra blocks."""
        return list(self.model.backbone.features.parameters())

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        """See `types.Detector`.

        The losses are those of torchvision, divided by the number of positives in the batch: smooth L1, and cross
        entropy over the positives and three times as many of the hardest negatives.
        """
        images = self._stretched_images(batch)
        if targets is None and not need.head:
            return DetectorOutput({"neck": self._neck(self.model.backbone.features[0](images), batch)})
        level, host_predictions, anchors = self._run(images)
        stage = self._stage(host_predictions, anchors, batch)
        losses: Mapping[str, Tensor] = {}
        if targets is not None:
            matched = [self._match(boxes, anchors) for boxes in self._stretched_boxes(targets.boxes, batch)]
            losses = self._losses(host_predictions, anchors, matched, targets, batch)
            stage = replace(stage, assignment=build_assignment(matched, stage.valid))
        return DetectorOutput({"neck": self._neck(level, batch)}, (stage,), losses)

    def candidates(self, batch: Batch) -> Candidates:
        """The candidates before suppression, with torchvision's thresholds: the best boxes of each class."""
        _, host_predictions, anchors = self._run(self._stretched_images(batch))
        stage = self._stage(host_predictions, anchors, batch)
        scores = stage.scores().transpose(1, 2)  # (B, K, N)
        best, index = scores.topk(min(self.model.topk_candidates, scores.shape[2]), dim=2)  # (B, K, n)
        labels = torch.arange(scores.shape[1], device=scores.device)[:, None].expand_as(index)
        boxes = clip(stage.boxes, batch.sizes).gather(1, index.flatten(1)[..., None].expand(-1, -1, 4))
        return Candidates(
            boxes,
            best.flatten(1),
            labels.flatten(1),
            threshold=self.model.score_thresh,
            nms=self.model.nms_thresh,
            limit=self.model.detections_per_img,
            classes=scores.shape[1],
        )

    @torch.no_grad()
    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        """See `types.Detector`. The result is that of torchvision's postprocessing."""
        return self.candidates(batch).detections()

    def _run(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Run the host on stretched images (B, 3, 320, 320).

        Returns the finest map, the host's predictions by its names, and its default boxes (N, 4) in these images.
        """
        maps = list(self.model.backbone(images).values())
        host_predictions = {name: values.float() for name, values in self.model.head(maps).items()}
        return maps[0], host_predictions, host_anchors(self.model.anchor_generator, images, maps)

    def _stretched_images(self, batch: Batch) -> Tensor:
        """(B, 3, 320, 320): each image without its padding, normalized, then stretched, as the host does.

        The result is that of a bilinear `F.interpolate` of each image alone.
        """
        images = normalize(batch, self.model.transform.image_mean, self.model.transform.image_std)
        axes = []
        for axis, side in enumerate(self.size):
            sides = batch.sizes[:, axis, None].float()
            places = (torch.arange(side, device=images.device) + 0.5) * (sides / side) - 0.5  # (B, side), in pixels
            places = places.clamp(min=0).minimum(sides - 1)
            axes.append((places + 0.5) * (2 / images.shape[2 + axis]) - 1)  # -1..1 of the padded batch
        y, x = axes[0][:, :, None], axes[1][:, None]
        grid = torch.stack([x.expand(-1, self.size[0], -1), y.expand(-1, -1, self.size[1])], dim=-1)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    def _factors(self, batch: Batch) -> Tensor:
        """(B, 4): pixels of the batch per pixel of the stretched image, for x1 y1 x2 y2."""
        ratios = batch.sizes.float() / batch.sizes.new_tensor(self.size)  # (B, 2), of heights and widths
        return ratios.flip(1).repeat(1, 2)

    def _stretched_boxes(self, boxes: Sequence[Tensor], batch: Batch) -> list[Tensor]:
        """Boxes (G, 4) per image, in pixels of the stretched image."""
        return [image_boxes / factors for image_boxes, factors in zip(boxes, self._factors(batch), strict=True)]

    def _neck(self, level: Tensor, batch: Batch) -> Pyramid:
        """The pyramid of one level. level (B, C, rows, columns): the finest map of the stretched images."""
        (stride,) = self.info.strides
        rows, columns = (-(-side // stride) for side in batch.images.shape[-2:])
        sizes = batch.sizes.to(level.device).float()
        y = (torch.arange(rows, device=level.device) + 0.5) * stride / sizes[:, :1] * 2 - 1  # (B, rows), -1..1
        x = (torch.arange(columns, device=level.device) + 0.5) * stride / sizes[:, 1:] * 2 - 1  # (B, columns)
        grid = torch.stack([x[:, None].expand(-1, rows, -1), y[:, :, None].expand(-1, -1, columns)], dim=-1)
        cells = F.grid_sample(level.float(), grid, padding_mode="border", align_corners=False).to(level.dtype)
        inside = Layout(((rows, columns),), (stride,)).valid(batch.sizes).view(-1, 1, rows, columns)
        return Pyramid((cells * inside,), self.info.strides, batch.sizes)

    def _class_logits(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The host's logits (B, N, columns) as those of the classes (B, N, K) and of the background (B, N)."""
        return logits[..., self.columns.index], logits[..., self.columns.background].logsumexp(dim=-1)

    def _stage(self, host_predictions: Mapping[str, Tensor], anchors: Tensor, batch: Batch) -> Predictions:
        """The predictions, with boxes in pixels of the batch."""
        deltas = host_predictions["bbox_regression"]
        boxes = self.model.box_coder.decode_single(deltas.flatten(0, 1), anchors.repeat(deltas.shape[0], 1)).view_as(
            deltas
        )
        logits, background = self._class_logits(host_predictions["cls_logits"])
        return Predictions(
            logits=logits,
            activation="softmax",
            boxes=boxes * self._factors(batch)[:, None],
            valid=torch.ones(deltas.shape[:2], dtype=torch.bool, device=deltas.device),
            background=background,
            deltas=deltas,
        )

    def _match(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """(N,): index of the box that the host's matcher assigns to each default box, or -1."""
        if len(boxes) == 0:
            return torch.full((len(anchors),), -1, device=anchors.device)
        return self.model.proposal_matcher(box_iou(boxes, anchors))

    def _losses(
        self,
        host_predictions: dict[str, Tensor],
        anchors: Tensor,
        matched: list[Tensor],
        targets: Targets,
        batch: Batch,
    ) -> dict[str, Tensor]:
        """The host's losses. It divides by the positives of this process; here it is their mean over the processes."""
        pairs = zip(self._stretched_boxes(targets.boxes, batch), targets.labels, strict=True)
        host_targets = [{"boxes": boxes, "labels": self.columns.index[labels]} for boxes, labels in pairs]
        terms = self.model.compute_loss(host_targets, host_predictions, [anchors] * len(batch), matched)
        local = sum((matches >= 0).sum() for matches in matched) + anchors.new_zeros(())
        rescale = local.clamp(min=1) / mean_over_processes(local)
        return {name: term * rescale for name, term in terms.items()}


def fit_tail(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the model, in place, the wide last stage if the weights in `state` have it.

    torchvision builds it if the training started from ImageNet weights. Its published detector has the narrow one.
    """
    width = "head.classification_head.module_list.1.0.0.weight"  # of the second map, (C, 1, 3, 3)
    if width not in state or state[width].shape == model.state_dict()[width].shape:
        return
    assert isinstance(model, SSD)
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    features = mobilenet_v3_large(weights=None, norm_layer=norm, reduced_tail=False).features
    strided = [index for index, block in enumerate(features) if getattr(block, "_is_cn", False)]
    model.backbone = SSDLiteFeatureExtractorMobileNet(features, strided[-1], norm)
    with torch.no_grad():
        maps = model.backbone.eval()(torch.zeros(1, 3, *reversed(model.transform.fixed_size)))
    model.backbone.train()
    widths, anchors = [level.shape[1] for level in maps.values()], model.anchor_generator.num_anchors_per_location()
    model.head = SSDLiteHead(widths, anchors, model.head.classification_head.num_columns, norm)
