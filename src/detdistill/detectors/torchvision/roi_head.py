"""The RoI head of torchvision's two-stage detectors: training, predictions, and the classification of other boxes.

P_i is the number of boxes of image i, n the number of boxes of all images, and P the largest P_i. Column 0 of the
host's class columns is the background.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models import detection as host
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import roi_align
from torchvision.ops._utils import convert_boxes_to_roi_format
from torchvision.ops.poolers import LevelMapper

from detdistill.detectors.outputs import build_assignment
from detdistill.detectors.torchvision.shared import rescale_to_process_mean, scatter_rows, unpadded_rows
from detdistill.types import Predictions, Pyramid, Targets

HostLevels = Mapping[str, Tensor]
"""The backbone's maps by torchvision's names, fine to coarse."""


class RoIColumns(nn.Module):
    """The host's class columns of our classes, and all other columns, which count as background.

    columns: the host's column of each class, in the shared class order. num_columns: number of the host's columns.
    The buffers are not saved, because the columns belong to the classes of the run and not to the weights.
    """

    index: Tensor
    background: Tensor

    def __init__(self, columns: Sequence[int], num_columns: int):
        super().__init__()
        background = sorted(set(range(num_columns)) - set(columns))
        self.register_buffer("index", torch.tensor(list(columns)), persistent=False)
        self.register_buffer("background", torch.tensor(background), persistent=False)


class RoIHead:
    """Runs the RoI head of a torchvision FasterRCNN, `model`. It is not an nn.Module: `model` keeps the parameters.

    columns: which class columns are read. strides: of the pyramid's levels, fine to coarse.
    """

    def __init__(self, model: host.FasterRCNN, columns: RoIColumns, strides: Sequence[int]):
        self.model = model
        self.columns = columns
        self.strides = tuple(strides)

    def train(
        self, levels: HostLevels, boxes: list[Tensor], targets: Targets
    ) -> tuple[list[Tensor], Predictions, dict[str, Tensor]]:
        """The host's sampled proposals per image, the stage on them with its assignment, and the host's two losses.

        boxes: the proposals (P_i, 4) per image, before the sampling.
        """
        # A host with a mask branch requires masks, but does not read them here.
        host_targets = [
            {"boxes": image_boxes, "labels": self.columns.index[labels], "masks": image_boxes}
            for image_boxes, labels in zip(targets.boxes, targets.labels, strict=True)
        ]
        boxes, indices, labels, codes = self.model.roi_heads.select_training_samples(boxes, host_targets)
        logits, deltas, embeddings = self._run(levels, boxes)
        losses = dict.fromkeys(("classifier", "box_reg"), logits.sum() * 0)
        rescale = rescale_to_process_mean(len(logits), logits)
        if len(logits):
            terms = fastrcnn_loss(logits, deltas, labels, codes)
            losses = {name: term * rescale for name, term in zip(losses, terms, strict=True)}
        matched = [index.masked_fill(label <= 0, -1) for index, label in zip(indices, labels, strict=True)]
        padded = pad_sequence(matched, batch_first=True, padding_value=-1)  # (B, P)
        assignment = build_assignment(list(padded), unpadded_rows(boxes))
        target_deltas = torch.where(assignment.positive[..., None], pad_sequence(list(codes), batch_first=True), 0.0)
        assignment = replace(assignment, deltas=target_deltas)
        stage = self._stage(logits, deltas, embeddings, boxes, unpadded_rows(boxes))
        return boxes, replace(stage, assignment=assignment), losses

    def predict(self, levels: HostLevels, boxes: list[Tensor]) -> Predictions:
        """The stage on proposals (P_i, 4) per image. The rows that fill up the batch come last in each image."""
        return self._stage(*self._run(levels, boxes), boxes, unpadded_rows(boxes))

    def classify(self, levels: HostLevels, boxes: Tensor, pyramid: Pyramid | None = None) -> Predictions:
        """The function `Proposals.classify`, for boxes (B, P, 4).

        Boxes are detached, as in the host. The gradient flows into the pyramid. Its levels are matched by stride.
        A box without area is not valid, and its predictions are 0.
        Raises ValueError if the pyramid lacks a level that the RoI head reads, or has another width.
        """
        if pyramid is not None:
            levels = self._replace_levels(levels, pyramid)
        boxes = boxes.detach()
        valid = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)  # (B, P)
        image_boxes = [rows[keep] for rows, keep in zip(boxes, valid, strict=True)]
        return self._stage(*self._run(levels, image_boxes), image_boxes, valid)

    def pooled_strides(self, levels: HostLevels) -> dict[str, int]:
        """The strides of the levels from which regions are pooled, by the host's names of these levels."""
        pooled_names = self.model.roi_heads.box_roi_pool.featmap_names
        names_and_strides = zip(levels, self.strides, strict=True)
        return {name: stride for name, stride in names_and_strides if name in pooled_names}

    def _run(self, levels: HostLevels, boxes: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Run the host's modules on boxes (P_i, 4) per image.

        Returns logits (n, columns), deltas (n, 4 * columns) and embeddings (n, D).
        """
        return self._run_rows(levels, convert_boxes_to_roi_format(boxes))

    def _run_rows(self, levels: HostLevels, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same for rows (n, 5): the index of the image, and its box."""
        roi_heads = self.model.roi_heads
        embeddings = roi_heads.box_head(self._pool(levels, rows))
        logits, deltas = roi_heads.box_predictor(embeddings)
        return logits.float(), deltas.float(), embeddings

    def _pool(self, levels: HostLevels, rows: Tensor) -> Tensor:
        """Features of rows (n, 5), from the level that fits the size of their box: (n, C, size, size).

        It is the host's pooling with the declared strides. The host would infer the strides from the first batch and
        keep them, and a first batch with much padding would give wrong ones.
        """
        pool, strides = self.model.roi_heads.box_roi_pool, self.pooled_strides(levels)
        depths = [int(math.log2(stride)) for stride in strides.values()]
        mapper = LevelMapper(depths[0], depths[-1], pool.canonical_scale, pool.canonical_level)
        level_of_row = mapper([rows[:, 1:]])
        width = next(iter(levels.values())).shape[1]
        pooled = rows.new_zeros((rows.shape[0], width, *pool.output_size))
        for number, (name, stride) in enumerate(strides.items()):
            (index,) = (level_of_row == number).nonzero(as_tuple=True)
            features = roi_align(levels[name], rows[index], pool.output_size, 1 / stride, pool.sampling_ratio)
            pooled = pooled.index_put((index,), features.to(pooled.dtype))
        return pooled

    def score(self, levels: HostLevels, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, P, K) and deltas (B, P, K, 4) of boxes (B, P, 4)."""
        count, per_image = boxes.shape[:2]
        image = torch.arange(count, device=boxes.device, dtype=boxes.dtype)[:, None, None].expand(-1, per_image, 1)
        logits, deltas, _ = self._run_rows(levels, torch.cat([image, boxes], dim=-1).flatten(0, 1))
        scores = logits.softmax(-1)[:, self.columns.index]
        deltas = deltas.unflatten(1, (-1, 4))[:, self.columns.index]
        return scores.unflatten(0, (count, per_image)), deltas.unflatten(0, (count, per_image))

    def _stage(
        self, logits: Tensor, deltas: Tensor, embeddings: Tensor, boxes: list[Tensor], valid: Tensor
    ) -> Predictions:
        """The predictions from the result of `_run` on `boxes`. valid (B, P): the places of the n rows, in order."""
        class_logits = logits[:, self.columns.index]  # (n, K)
        class_deltas = deltas.unflatten(1, (-1, 4))[:, self.columns.index]  # (n, K, 4)
        best = class_logits.argmax(dim=1)
        best_deltas = class_deltas[torch.arange(len(best), device=best.device), best]  # (n, 4)
        best_boxes = self.model.roi_heads.box_coder.decode(best_deltas, boxes).reshape(-1, 4)
        return Predictions(
            logits=scatter_rows(class_logits, valid),
            activation="softmax",
            boxes=scatter_rows(best_boxes, valid),
            valid=valid,
            background=scatter_rows(logits[:, self.columns.background].logsumexp(dim=1), valid),
            deltas=scatter_rows(class_deltas, valid),
            embeddings=scatter_rows(embeddings, valid),
        )

    def _replace_levels(self, levels: HostLevels, pyramid: Pyramid) -> HostLevels:
        """The host's levels, replaced by those of `pyramid` that have the same stride."""
        by_stride = dict(zip(pyramid.strides, pyramid.levels, strict=True))
        strides, width = tuple(self.pooled_strides(levels).values()), self.model.backbone.out_channels
        if any(stride not in by_stride or by_stride[stride].shape[1] != width for stride in strides):
            widths = {stride: level.shape[1] for stride, level in by_stride.items()}
            expected = f"the RoI head reads {width} channels at strides {strides}"
            raise ValueError(f"{expected}, but the pyramid has (stride: channels) {widths}")
        replaced: OrderedDict[str, Tensor] = OrderedDict()
        for (name, level), stride in zip(levels.items(), self.strides, strict=True):
            replaced[name] = by_stride.get(stride, level)
        return replaced
