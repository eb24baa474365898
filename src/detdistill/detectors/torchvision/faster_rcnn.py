"""torchvision's Faster R-CNN as a detector of this house, composed of the library's own public parts.

Ren et al., arXiv:1506.01497, with the pyramid of arXiv:1612.03144. Two stages, in this order:

* RPN: class-agnostic objectness, logits (B, N, 1) with a sigmoid, whatever K is; dense, so it has a layout; deltas (B, N, 4).
* RoI: logits (B, P, K) and the background's with a softmax; boxes are those of the likeliest class, deltas (B, P, K, 4) those of all;
  embeddings (B, P, D) are what the box head gives the predictor. Row p answers for proposals.boxes[:, p].

With targets the proposals are those the loss is computed on (training counts, ground truth appended, sampled); without, the test ones.
Which of the two hangs on the targets alone, never on `training`. An assignment's `valid` rows are the sampled ones.
"""

import copy
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models import detection as host
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from detdistill.detectors.backbone import Neck, build_neck
from detdistill.detectors.images import host_sizes, normalize
from detdistill.detectors.outputs import assemble, dense_layout
from detdistill.detectors.torchvision.shared import (
    anchor_maps,
    filled,
    flat_anchors,
    host_anchors,
    process_share,
    spread,
)
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.types import (
    Batch,
    Detections,
    DetectorInfo,
    DetectorOutput,
    GridInfo,
    Layout,
    Need,
    Predictions,
    ProposalInfo,
    Proposals,
    Pyramid,
    Targets,
    required,
)

Levels = Mapping[str, Tensor]  # the backbone's maps by the host's names, fine to coarse


class FasterRCNN(nn.Module):
    """Wraps `model`, a torchvision FasterRCNN, and leaves its weights and their names alone.

    columns: the host column of each of `classes`; none: all but 0, the background. Columns that are not asked for join the background, so that
    the scores of `classes` stay the host's. strides: of the backbone's levels, fine to coarse; the host doesn't know them.
    Raises UserError where classes, columns or strides don't fit the model.
    """

    columns: Tensor
    others: Tensor

    def __init__(
        self,
        model: host.FasterRCNN,
        classes: Sequence[str],
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        columns: Sequence[int] | None = None,
        kind: str = "faster_rcnn",
    ):
        super().__init__()
        self.model = model
        width = model.roi_heads.box_predictor.cls_score.out_features
        columns = range(1, width) if columns is None else columns
        _check(classes, columns, strides, width, len(model.rpn.anchor_generator.sizes))
        others = sorted(set(range(width)) - set(columns))
        # Not saved: they belong to the class order of the run, not to the weights.
        self.register_buffer("columns", torch.tensor(list(columns)), persistent=False)
        self.register_buffer("others", torch.tensor(others), persistent=False)
        cells = tuple(
            tuple((x1 - x0, y1 - y0) for x0, y0, x1, y1 in cell.tolist())
            for cell in model.rpn.anchor_generator.cell_anchors
        )
        self.info = DetectorInfo(
            kind=kind,
            classes=tuple(classes),
            strides=tuple(strides),
            channels={"neck": model.backbone.out_channels},
            activation="softmax",
            grid=GridInfo(anchors_per_cell=len(cells[0]), assigner="rpn", cell_anchors=cells),
            proposals=ProposalInfo(
                strides=tuple(
                    strides[: len(model.roi_heads.box_roi_pool.featmap_names)]
                ),  # hosts pool from the finest levels
                code=tuple(model.roi_heads.box_coder.weights),
                embedding_channels=model.roi_heads.box_predictor.cls_score.in_features,
            ),
        )

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Those of the body below the FPN."""
        backbone = self.model.backbone
        return list(getattr(backbone, "body", backbone).parameters())

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        """See Detector.observe. losses: objectness, rpn_box_reg, classifier, box_reg (the host's, without its `loss_`)."""
        levels, pyramid = self._look(batch)
        if targets is None and not need.head:
            return DetectorOutput({"neck": pyramid})
        anchors, layout = (
            flat_anchors(pyramid.anchors or ()),
            dense_layout(pyramid, required(self.info.grid).anchors_per_cell),
        )
        classify = partial(self._classify, levels)
        if targets is None and not (
            need.predictions or need.proposals
        ):  # the first stage is not needed for given boxes
            none = anchors.new_zeros((len(batch), 0, 4))
            return DetectorOutput({"neck": pyramid}, proposals=Proposals(none, none.any(-1), classify))
        sizes = host_sizes(batch.sizes)
        rpn = self._rpn(levels, anchors, layout, batch.sizes)
        stage = self._host_rpn(training=targets is not None)
        boxes, _ = stage.filter_proposals(rpn.boxes.detach(), rpn.logits.detach(), sizes, list(layout.counts))
        losses: dict[str, Tensor] = {}
        roi = None
        if targets is not None:
            rpn, losses = self._train_rpn(rpn, anchors, targets)
            boxes, roi, roi_losses = self._train_roi(levels, boxes, targets)
            losses |= roi_losses
        elif need.predictions:
            roi = self._roi(*self._second_stage(levels, boxes), boxes)
        proposals = Proposals(pad_sequence(boxes, batch_first=True), filled(boxes), classify)
        return DetectorOutput(
            {"neck": pyramid},
            stages=(rpn,) if roi is None else (rpn, roi),
            losses=losses,
            proposals=proposals,
            assign=lambda targets: assemble(self._match(anchors, targets), rpn.valid),
        )

    @torch.no_grad()
    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        """See Detector.detect: the host's own thresholds, suppression and number of detections."""
        output = self.observe(batch, need=Need(predictions=True))
        roi, proposals = output.stages[-1], output.proposals
        assert proposals is not None
        assert roi.background is not None
        assert roi.deltas is not None
        boxes = [own[keep] for own, keep in zip(proposals.boxes, proposals.valid, strict=True)]
        logits = torch.cat([roi.background[..., None], roi.logits], dim=-1)[
            roi.valid
        ]  # the host's order: the background first
        deltas = nn.functional.pad(roi.deltas[roi.valid], (0, 0, 1, 0)).flatten(1)
        found = self.model.roi_heads.postprocess_detections(logits, deltas, boxes, host_sizes(batch.sizes))
        return tuple(Detections(boxes, scores, labels - 1) for boxes, scores, labels in zip(*found, strict=True))

    def _look(self, batch: Batch) -> tuple[Levels, Pyramid]:
        """The backbone's maps under the host's names, and the same as a pyramid with the host's anchors."""
        images = normalize(batch, self.model.transform.image_mean, self.model.transform.image_std)
        levels = self.model.backbone(images)
        levels = OrderedDict([("0", levels)]) if isinstance(levels, Tensor) else levels
        maps = tuple(levels.values())
        anchors = host_anchors(self.model.rpn.anchor_generator, images, batch, maps)
        return levels, Pyramid(maps, self.info.strides, batch.sizes, anchor_maps(anchors, maps))

    def _rpn(self, levels: Levels, anchors: Tensor, layout: Layout, sizes: Tensor) -> Predictions:
        objectness, deltas = concat_box_prediction_layers(*self.model.rpn.head(list(levels.values())))
        objectness, deltas = objectness.float(), deltas.float()
        boxes = self.model.rpn.box_coder.decode(deltas, [anchors] * len(sizes))
        shape = (len(sizes), len(anchors))
        return Predictions(
            logits=objectness.view(*shape, 1),
            activation="sigmoid",
            boxes=boxes.reshape(*shape, 4),
            valid=layout.valid(sizes),
            layout=layout,
            deltas=deltas.view(*shape, 4),
        )

    def _host_rpn(self, training: bool) -> Any:
        """The host's RPN, its weights shared, under a flag of its own: the host reads the number of proposals off its `training`."""
        view = copy.copy(self.model.rpn)
        view.training = training
        return view

    def _match(self, anchors: Tensor, targets: Targets) -> list[Tensor]:
        """(N,) of each image: index of the target, -1 for background, -2 for neither (the host's thresholds)."""
        rpn = self.model.rpn
        nothing = torch.full((len(anchors),), -1, device=anchors.device)
        return [
            rpn.proposal_matcher(rpn.box_similarity(own, anchors)) if len(own) else nothing for own in targets.boxes
        ]

    def _train_rpn(self, rpn: Predictions, anchors: Tensor, targets: Targets) -> tuple[Predictions, dict[str, Tensor]]:
        """The host's two losses, and `rpn` with the assignment they were computed on."""
        assert rpn.deltas is not None
        matched = self._match(anchors, targets)
        labels = [(own >= 0).float().masked_fill(own == -2, -1) for own in matched]
        drawn = self.model.rpn.fg_bg_sampler(labels)
        # Without a target any finite box will do: only positives are regressed.
        aims = [
            boxes[own.clamp(min=0)] if len(boxes) else anchors
            for boxes, own in zip(targets.boxes, matched, strict=True)
        ]
        codes = self.model.rpn.box_coder.encode(aims, [anchors] * len(aims))
        stage = self._host_rpn(training=True)
        stage.fg_bg_sampler = lambda labels: drawn  # the view's own: so that the rows of the loss are known outside it
        sampled = torch.stack([(positive | negative).bool() for positive, negative in zip(*drawn, strict=True)])
        count = int(sampled.sum())
        losses = dict.fromkeys(("objectness", "rpn_box_reg"), rpn.logits.sum() * 0)
        share = process_share(count, rpn.logits)
        if count:
            terms = stage.compute_loss(rpn.logits, rpn.deltas.flatten(0, 1), labels, list(codes))
            losses = {name: term * share for name, term in zip(losses, terms, strict=True)}
        rows = [own.masked_fill(~mask, -1) for own, mask in zip(matched, sampled, strict=True)]
        assignment = assemble(rows, sampled & rpn.valid)
        deltas = torch.where(assignment.positive[..., None], torch.stack(list(codes)), 0.0)
        return replace(rpn, assignment=replace(assignment, deltas=deltas)), losses

    def _train_roi(
        self, levels: Levels, boxes: list[Tensor], targets: Targets
    ) -> tuple[list[Tensor], Predictions, dict[str, Tensor]]:
        """The host's sampled proposals, what the RoI head says of them, and the host's two losses."""
        # A host with a mask branch insists on masks, and does not look at them here.
        pairs = zip(targets.boxes, targets.labels, strict=True)
        asked = [{"boxes": own, "labels": self.columns[labels], "masks": own} for own, labels in pairs]
        boxes, indices, labels, codes = self.model.roi_heads.select_training_samples(boxes, asked)
        logits, deltas, embeddings = self._second_stage(levels, boxes)
        losses = dict.fromkeys(("classifier", "box_reg"), logits.sum() * 0)
        share = process_share(len(logits), logits)
        if len(logits):
            terms = fastrcnn_loss(logits, deltas, labels, codes)
            losses = {name: term * share for name, term in zip(losses, terms, strict=True)}
        rows = [index.masked_fill(label <= 0, -1) for index, label in zip(indices, labels, strict=True)]
        assignment = assemble(list(pad_sequence(rows, batch_first=True, padding_value=-1)), filled(boxes))
        aims = torch.where(assignment.positive[..., None], pad_sequence(list(codes), batch_first=True), 0.0)
        assignment = replace(assignment, deltas=aims)
        return boxes, replace(self._roi(logits, deltas, embeddings, boxes), assignment=assignment), losses

    def _second_stage(self, levels: Levels, boxes: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The host's RoI head on boxes (P_i, 4) of each image: logits (n, columns), deltas (n, 4 columns), embeddings (n, D), n = sum P_i."""
        heads = self.model.roi_heads
        pool, strides = heads.box_roi_pool, self._pooled(levels).values()
        # Declared: the host would infer them from the first batch it sees and keep them, and a batch of much padding misleads it.
        depths = [int(math.log2(stride)) for stride in strides]
        pool.scales = [1 / stride for stride in strides]
        pool.map_levels = LevelMapper(depths[0], depths[-1], pool.canonical_scale, pool.canonical_level)
        embeddings = heads.box_head(pool(levels, boxes, []))
        logits, deltas = heads.box_predictor(embeddings)
        return logits.float(), deltas.float(), embeddings

    def _pooled(self, levels: Levels) -> dict[str, int]:
        """Names and strides of the levels that RoIs are cut from."""
        names = self.model.roi_heads.box_roi_pool.featmap_names
        return {name: stride for name, stride in zip(levels, self.info.strides, strict=True) if name in names}

    def _roi(
        self, logits: Tensor, deltas: Tensor, embeddings: Tensor, boxes: list[Tensor], valid: Tensor | None = None
    ) -> Predictions:
        """From the rows of `_second_stage` on `boxes`, which fill `valid` (B, P); none: the first rows of each image."""
        valid = filled(boxes) if valid is None else valid
        own, codes = logits[:, self.columns], deltas.unflatten(1, (-1, 4))[:, self.columns]
        best = own.argmax(dim=1)
        decoded = self.model.roi_heads.box_coder.decode(codes[torch.arange(len(best), device=best.device), best], boxes)
        return Predictions(
            logits=spread(own, valid),
            activation="softmax",
            boxes=spread(decoded.reshape(-1, 4), valid),
            valid=valid,
            background=spread(logits[:, self.others].logsumexp(dim=1), valid),
            deltas=spread(codes, valid),
            embeddings=spread(embeddings, valid),
        )

    def _classify(self, levels: Levels, boxes: Tensor, pyramid: Pyramid | None = None) -> Predictions:
        """Proposals.classify. A row without an area is not valid and its numbers are 0. Boxes are constants, as in the host: the gradient goes
        into the pyramid, whose levels are paired by stride."""
        if pyramid is not None:
            given = dict(zip(pyramid.strides, pyramid.levels, strict=True))
            pooled, width = self._pooled(levels), self.info.channels["neck"]
            if not given.keys() >= set(pooled.values()) or any(
                given[stride].shape[1] != width for stride in pooled.values()
            ):
                got = {stride: level.shape[1] for stride, level in given.items()}
                wanted = f"the RoI head reads {width} channels at strides {tuple(pooled.values())}"
                raise ValueError(f"{wanted}, the pyramid has (stride: channels) {got}")
            levels = OrderedDict(
                (name, given.get(stride, level))
                for (name, level), stride in zip(levels.items(), self.info.strides, strict=True)
            )
        boxes = boxes.detach()
        valid = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
        rows = [own[keep] for own, keep in zip(boxes, valid, strict=True)]
        return self._roi(*self._second_stage(levels, rows), rows, valid)


def faster_rcnn(config: ModelConfig, backbone: str, classes: Sequence[str]) -> FasterRCNN:
    """On a timm backbone with an FPN; levels coarser than the backbone's are subsampled, and RoIs are cut from the others.

    Anchors: 32 pixels at the finest level, doubling with each, three shapes a cell (the published ones where strides begin at 4). The box head is
    4 times as wide as the neck (the published 1024 at 256). Raises UserError where the backbone can't serve.
    """
    neck = build_neck(backbone, config.strides, config.channels, config.backbone_weights, pooled=True)
    return FasterRCNN(host.FasterRCNN(neck, **host_parts(config, neck, len(classes))), classes, config.strides)


def host_parts(config: ModelConfig, neck: Neck, classes: int) -> dict[str, Any]:
    """What torchvision's two-stage models are told of RPN, RoI head and detections."""
    names = [str(stride) for stride in neck.reductions]
    width = 4 * config.channels
    return {
        "rpn_anchor_generator": host.rpn.AnchorGenerator(
            sizes=tuple((32 * 2**level,) for level in range(len(config.strides))),
            aspect_ratios=((0.5, 1.0, 2.0),) * len(config.strides),
        ),
        "box_roi_pool": MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
        "box_head": host.faster_rcnn.TwoMLPHead(config.channels * 7 * 7, width),
        "box_predictor": host.faster_rcnn.FastRCNNPredictor(width, classes + 1),
        "box_score_thresh": config.score_threshold,
        "box_nms_thresh": 0.5 if config.nms_threshold is None else config.nms_threshold,
        "box_detections_per_img": config.detections,
        "box_batch_size_per_image": config.rois,
    }


def _check(classes: Sequence[str], columns: Sequence[int], strides: Sequence[int], width: int, levels: int) -> None:
    if len(columns) != len(classes) or len(set(columns)) != len(columns) or not set(columns) <= set(range(1, width)):
        asked = f"{len(classes)} classes with columns {list(columns)}"
        raise UserError(
            f"faster_rcnn: {asked} don't fit a predictor of {width} columns; give each class a column from 1 to {width - 1}"
        )
    if len(strides) != levels:
        raise UserError(
            f"faster_rcnn: strides {tuple(strides)} don't fit a model with anchors for {levels} levels; give {levels} strides"
        )
