"""D-FINE (arXiv:2410.13842) from transformers, taken apart into neck, decoder input, decoder and heads.

The host's own forward is not called: its parts are, in its order, so that a look may stop early, the decoder may run again on other queries,
and every layer answers in evaluation mode too, where the host's says what its last layer says only. Equal to the host's forward (tests).

A layer says each side of a box as a distribution of its distance from the initial box, which a head of its own makes behind the first layer.
Distances are trained by FGL, and layers learn from the last one by DDF. The losses are the host's, which part from the published code: there the
initial boxes, with class scores behind the first layer, are trained by themselves, and each layer by its own scores, boxes and distances; in
transformers 5.23 and 5.24 the initial ones head the list of boxes and not that of distances, and the two are zipped. So distances are trained by
assignment and IoU of the boxes one layer before, scores and boxes of the last layer but one not at all (those of the noise: of the last), and the last
layer's distances have no FGL. The published union of all layers' assignments (GO) the host has not, nor have we.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DFineConfig, DFineForObjectDetection
from transformers.loss.loss_d_fine import DFineLoss
from transformers.models.d_fine.modeling_d_fine import distance2bbox, inverse_sigmoid, weighting_function

from detdistill.detectors.queries.detector import Features, QueryDetector, assemble, by_stage
from detdistill.detectors.queries.frames import to_pixels, to_relative
from detdistill.detectors.transformers import hybrid
from detdistill.detectors.transformers.criterion import StageCriterion, host_labels, object_count
from detdistill.detectors.transformers.hybrid import Memory
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.types import Assignment, Batch, EdgeInfo, Predictions, QuerySet, Targets


@dataclass(frozen=True, eq=False)
class Refined(Predictions):
    """Also the initial boxes (B, Q, 4) that the edges tell distances from, cx cy w h in 0..1 of the padded batch, without a gradient."""

    initial: Tensor | None = None


class DFINE:
    """The `Family` over a `DFineForObjectDetection` whose labels are `classes` in order, strides those of its encoder's levels."""

    def __init__(self, model: DFineForObjectDetection, classes: Sequence[str], strides: Sequence[int]):
        config = model.config
        self.info = hybrid.describe(
            config, classes, strides, EdgeInfo(config.max_num_bins + 1, (float(config.up), float(config.reg_scale)))
        )
        if config.eval_idx not in (-1, config.decoder_layers - 1):
            raise UserError(
                f"d_fine: eval_idx {config.eval_idx} is not served, every layer is read; take a model with eval_idx -1"
            )
        self.model = model
        self.matcher = hybrid.matcher(config)
        host = DFineLoss(config)
        host.up = model.model.decoder.up  # its own would stay behind on another device
        self.losses = StageCriterion(host, host.weight_dict, ("vfl", "boxes", "local"))

    def body(self) -> nn.Module:
        return self.model.model.backbone

    def neck(self, batch: Batch) -> Features:
        return hybrid.neck(self.model.model, batch)

    def encode(self, features: Features) -> Memory:
        return hybrid.encode(self.model.model, features)

    def queries(self, memory: Memory) -> QuerySet:
        return hybrid.queries(memory)

    def sample(self, n: int, generator: torch.Generator, memory: Memory) -> QuerySet:
        return hybrid.sample(n, generator, memory)

    def decode(self, queries: QuerySet, memory: Memory) -> tuple[Refined, ...]:
        _, *stages = self._decode(*hybrid.joined(None, queries, memory), memory)
        return tuple(stages)

    def match(self, stages: Sequence[Predictions], memory: Memory, targets: Targets) -> tuple[Assignment, ...]:
        return self.matcher([_inside(stage, memory) for stage in stages], memory.frame, targets)

    def criterion(self, stages: Sequence[Predictions], memory: Memory, targets: Targets) -> dict[str, Tensor]:
        """The classification term is the varifocal loss. `fgl` and `ddf`, which the last of these stages teaches, come with stages that know
        their initial boxes, as all of this decoder's do; each stage's with its own distances, as published."""
        labels, count = host_labels(targets, memory.frame), object_count(targets, memory.frame)
        return by_stage([self._terms(stage, stages[-1], memory, labels, count) for stage in stages])

    def learn(
        self, queries: QuerySet, memory: Memory, targets: Targets
    ) -> tuple[tuple[Predictions, ...], dict[str, Tensor]]:
        """Terms of the initial boxes end in `_pre`, those of the encoder's choice in `_encoder`, those of the noise in layer i in
        `_denoising_i`, or `_denoising_pre`."""
        labels, count = host_labels(targets, memory.frame), object_count(targets, memory.frame)
        noise = hybrid.denoise(self.model, labels, memory)
        noisy, own = hybrid.parted(noise, self._decode(*hybrid.joined(noise, queries, memory), memory))
        chosen = memory.encoder_stage()
        *found, answers = self.match([*own, chosen], memory, targets)
        own, encoder = hybrid.matched(own, found), replace(chosen, assignment=answers)
        terms: dict[str, Tensor] = {}
        for index, stage in enumerate(_shifted(own, own[1:-1])):
            suffix = f"_{index - 1}" if index else "_pre"
            terms |= hybrid.suffixed(self._terms(stage, own[-1], memory, labels, count), suffix)
        terms |= self._terms(replace(own[-1], edges=None), own[-1], memory, labels, count)
        terms |= hybrid.suffixed(self._terms(encoder, encoder, memory, labels, count), "_encoder")
        if noise is not None:
            for index, stage in enumerate(_shifted(noisy, noisy[1:])):
                suffix = f"_denoising_{index - 1}" if index else "_denoising_pre"
                terms |= hybrid.suffixed(self._terms(stage, noisy[-1], memory, labels, count * noise.groups), suffix)
        return tuple(own[1:]), terms

    def _terms(
        self, stage: Predictions, teacher: Predictions, memory: Memory, labels: list[dict[str, Any]], count: Tensor
    ) -> dict[str, Tensor]:
        inside = _inside(stage, memory)
        outputs = {"logits": stage.logits, "pred_boxes": to_relative(inside.boxes, memory.frame)}
        if (
            isinstance(stage, Refined)
            and stage.edges is not None
            and stage.initial is not None
            and teacher.edges is not None
        ):
            outputs |= {"pred_corners": stage.edges.flatten(2), "ref_points": stage.initial}
            outputs |= {"teacher_corners": teacher.edges.flatten(2), "teacher_logits": teacher.logits}
        return self.losses.stage(outputs, inside, labels, count)

    def _decode(self, state: Tensor, reference: Tensor, mask: Tensor | None, memory: Memory) -> list[Refined]:
        """First the initial boxes, which have no edges, then a stage a layer."""
        host: Any = self.model.model.decoder
        bins, layout = weighting_function(host.max_num_bins, host.up, host.reg_scale), memory.layout()
        before = edges = initial = None
        stages: list[Refined] = []
        for layer, classify, regress, estimate in zip(
            host.layers, host.class_embed, host.bbox_embed, host.lqe_layers, strict=True
        ):
            place = host.query_pos_head(reference).clamp(min=-10, max=10)
            state = layer(
                state,
                position_embeddings=place,
                reference_points=reference[:, :, None],
                encoder_attention_mask=mask,
                **layout,
            )
            logits = classify(state)
            if initial is None or before is None or edges is None:
                boxes = (host.pre_bbox_head(state).float() + inverse_sigmoid(reference)).sigmoid()
                initial = boxes.detach()
                stages.append(self._stage(logits, boxes, None, initial, state, memory))
                edges = regress(state).float()
            else:
                edges = regress(state + before).float() + edges
            # A matrix product, as the host's, would be done in half precision under autocast.
            distances = (edges.unflatten(-1, (4, -1)).softmax(-1) * bins).sum(-1)
            boxes = distance2bbox(initial, distances, host.reg_scale)
            stages.append(
                self._stage(estimate(logits, edges), boxes, edges.unflatten(-1, (4, -1)), initial, state, memory)
            )
            reference, before = boxes.detach(), state.detach()
        return stages

    def _stage(
        self, logits: Tensor, boxes: Tensor, edges: Tensor | None, initial: Tensor, state: Tensor, memory: Memory
    ) -> Refined:
        plain = hybrid.predictions(logits, boxes, memory)
        return Refined(
            plain.logits, plain.activation, plain.boxes, plain.valid, edges=edges, embeddings=state, initial=initial
        )


def _inside(stage: Predictions, memory: Memory) -> Predictions:
    """With centres and sides in 0..1 of the frame, as the host trains and matches them: distances may leave a box with a negative side."""
    return replace(stage, boxes=to_pixels(to_relative(stage.boxes, memory.frame).clamp(min=0, max=1), memory.frame))


def _shifted(sources: Sequence[Refined], edged: Sequence[Refined]) -> list[Refined]:
    """The host's pairs: the sources from the first on, with the distances of the others, one layer later."""
    return [
        replace(source, edges=other.edges, initial=other.initial) for source, other in zip(sources, edged, strict=False)
    ]


def d_fine(config: ModelConfig, backbone: str, classes: Sequence[str], **host: Any) -> QueryDetector:
    """From config, offline, on a timm backbone or the native one. host: fields of `DFineConfig` laid over all else.

    Raises UserError where strides, width or backbone don't fit.
    """
    model, norms = hybrid.construct((DFineConfig, DFineForObjectDetection), config, backbone, classes, host)
    return assemble(DFINE(model, classes, config.strides), config, norms)
