"""D-FINE (arXiv:2410.13842) of transformers as a `Family`.

The host's own forward is not called. Its parts are called in its order, so that `observe` can stop early, the decoder
can run again on other queries, and every layer gives a stage in eval mode too. (In eval mode the host returns the
last layer only.) Stages and losses equal the host's (tests).

A layer predicts each side of a box as a distribution of its distance from the initial box. A separate head predicts the
initial box after the first layer. The distances are trained by FGL, and layers learn from the last layer by DDF.

The losses are the host's. They differ from the published code:

* Published: the initial boxes, with the class scores after the first layer, are trained on their own. Each layer is
  trained with its own scores, boxes and distances.
* transformers 5.23 and 5.24: the list of boxes starts with the initial boxes, the list of distances does not, and the
  two lists are zipped. So distances are trained with the assignment and the IoU of the boxes one layer before. The
  scores and boxes of the last layer but one are not trained; for denoising queries those of the last layer are not
  trained. The distances of the last layer have no FGL.
* Published: the assignments of all layers are united (GO). The host does not do this, so it is not done here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from transformers import DFineConfig, DFineForObjectDetection
from transformers.loss.loss_d_fine import DFineLoss
from transformers.models.d_fine.modeling_d_fine import distance2bbox, inverse_sigmoid, weighting_function

from detdistill.detectors.queries.detector import QueryDetector, assemble
from detdistill.detectors.queries.stages import merge_terms, sigmoid_stage, with_assignments, with_suffix
from detdistill.detectors.transformers import denoising, hybrid
from detdistill.detectors.transformers.criterion import StageCriterion, host_labels, object_count
from detdistill.detectors.transformers.hybrid import HybridDETR, Memory
from detdistill.detectors.transformers.hybrid_build import construct
from detdistill.errors import UserError
from detdistill.geometry import to_pixels, to_relative
from detdistill.recipe import ModelConfig
from detdistill.types import Assignment, EdgeInfo, Predictions, QuerySet, Targets


@dataclass(frozen=True, eq=False)
class Refined(Predictions):
    """Predictions with the initial boxes, from which the edges measure their distances.

    initial: cx cy w h in 0..1 of the padded batch, detached, (B, Q, 4).
    """

    initial: Tensor | None = None


class DFINE(HybridDETR):
    """The `Family` over a `DFineForObjectDetection`.

    classes: the labels of the model, in order. strides: the strides of its encoder's levels.
    """

    losses: StageCriterion

    def __init__(self, model: DFineForObjectDetection, classes: Sequence[str], strides: Sequence[int]):
        config = model.config
        edges = EdgeInfo(config.max_num_bins + 1, (float(config.up), float(config.reg_scale)))
        self.info = hybrid.describe(config, classes, strides, edges)
        if config.eval_idx not in (-1, config.decoder_layers - 1):
            raise UserError(
                f"d_fine: eval_idx {config.eval_idx} is not supported, because every layer is read; choose a model "
                "with eval_idx -1"
            )
        self.model = model
        self.matcher = hybrid.matcher(config)
        host_loss = DFineLoss(config)
        host_loss.up = model.model.decoder.up  # moves to the device with the model; the tensor of the loss does not
        self.losses = StageCriterion(host_loss, host_loss.weight_dict, ("vfl", "boxes", "local"))

    def decode(self, queries: QuerySet, memory: Memory) -> tuple[Refined, ...]:
        content, reference, mask = denoising.join(None, queries, memory)
        _, *stages = self._decode(content, reference, mask, memory)
        return tuple(stages)

    def match(self, stages: Sequence[Predictions], memory: Memory, targets: Targets) -> tuple[Assignment, ...]:
        return self.matcher([_clamped(stage, memory) for stage in stages], memory.frame, targets)

    def criterion(self, stages: Sequence[Predictions], memory: Memory, targets: Targets) -> dict[str, Tensor]:
        """Weighted terms as published: each stage is trained with its own distances.

        The terms `fgl` and `ddf` exist for stages of type `Refined`, as this decoder returns them. The last stage is
        the teacher of `ddf`.
        """
        labels = host_labels(targets, memory.frame)
        count = object_count(targets, memory.frame)
        return merge_terms([self._terms(stage, stages[-1], memory, labels, count) for stage in stages])

    def learn(
        self, queries: QuerySet, memory: Memory, targets: Targets
    ) -> tuple[tuple[Predictions, ...], dict[str, Tensor]]:
        """Also trains the initial boxes, the encoder's predictions and denoising queries, as the host does.

        Terms of the initial boxes end in `_pre`, those of the encoder in `_encoder`. Terms of the denoising queries
        end in `_denoising_pre`, and in `_denoising_i` after layer i.
        """
        labels = host_labels(targets, memory.frame)
        count = object_count(targets, memory.frame)
        noise = denoising.denoise(self.model, labels, memory)
        content, reference, mask = denoising.join(noise, queries, memory)
        noisy, own = denoising.split(noise, self._decode(content, reference, mask, memory))
        encoder = memory.encoder_stage()
        *own_assignments, encoder_assignment = self.match([*own, encoder], memory, targets)
        own = with_assignments(own, own_assignments)
        encoder = replace(encoder, assignment=encoder_assignment)
        terms: dict[str, Tensor] = {}
        for index, stage in enumerate(_with_next_edges(own[:-2], own[1:-1])):
            suffix = f"_{index - 1}" if index else "_pre"
            terms |= with_suffix(self._terms(stage, own[-1], memory, labels, count), suffix)
        terms |= self._terms(replace(own[-1], edges=None), own[-1], memory, labels, count)
        terms |= with_suffix(self._terms(encoder, encoder, memory, labels, count), "_encoder")
        if noise is not None:
            for index, stage in enumerate(_with_next_edges(noisy[:-1], noisy[1:])):
                suffix = f"_denoising_{index - 1}" if index else "_denoising_pre"
                terms |= with_suffix(self._terms(stage, noisy[-1], memory, labels, count * noise.groups), suffix)
        return tuple(own[1:]), terms

    def _terms(
        self, stage: Predictions, teacher: Predictions, memory: Memory, labels: list[dict[str, Any]], count: Tensor
    ) -> dict[str, Tensor]:
        """Weighted terms of one stage. teacher: the stage whose edges are the targets of DDF."""
        clamped = _clamped(stage, memory)
        outputs = {"logits": stage.logits, "pred_boxes": to_relative(clamped.boxes, memory.frame)}
        initial = stage.initial if isinstance(stage, Refined) else None
        if stage.edges is not None and initial is not None and teacher.edges is not None:
            outputs["pred_corners"] = stage.edges.flatten(2)  # (B, Q, 4 R)
            outputs["ref_points"] = initial
            outputs["teacher_corners"] = teacher.edges.flatten(2)
            outputs["teacher_logits"] = teacher.logits
        return self.losses.stage(outputs, clamped, labels, count)

    def _decode(self, state: Tensor, reference: Tensor, mask: Tensor | None, memory: Memory) -> list[Refined]:
        """The stage of the initial boxes, which has no edges, then one stage per layer.

        state: content (B, Q, D). reference: boxes (B, Q, 4), cx cy w h in 0..1 of the frame.
        """
        decoder: Any = self.model.model.decoder
        bins = weighting_function(decoder.max_num_bins, decoder.up, decoder.reg_scale)  # (R,)
        layout = memory.layout()
        previous = edges = initial = None
        stages: list[Refined] = []
        for layer, class_head, edge_head, quality_estimator in zip(
            decoder.layers, decoder.class_embed, decoder.bbox_embed, decoder.lqe_layers, strict=True
        ):
            position = decoder.query_pos_head(reference).clamp(min=-10, max=10)
            state = layer(
                state,
                position_embeddings=position,
                reference_points=reference[:, :, None],  # (B, Q, 1, 4)
                encoder_attention_mask=mask,
                **layout,
            )
            logits = class_head(state)
            if initial is None or previous is None or edges is None:
                boxes = (decoder.pre_bbox_head(state).float() + inverse_sigmoid(reference)).sigmoid()
                initial = boxes.detach()
                stages.append(_refined(logits, boxes, None, initial, state, memory))
                edges = edge_head(state).float()  # (B, Q, 4 R)
            else:
                edges = edge_head(state + previous).float() + edges
            # The host uses a matrix product here, which would run in half precision under autocast.
            distances = (edges.unflatten(-1, (4, -1)).softmax(-1) * bins).sum(-1)  # (B, Q, 4)
            boxes = distance2bbox(initial, distances, decoder.reg_scale)
            stages.append(_refined(quality_estimator(logits, edges), boxes, edges, initial, state, memory))
            reference, previous = boxes.detach(), state.detach()
        return stages


def _refined(
    logits: Tensor, boxes: Tensor, edges: Tensor | None, initial: Tensor, state: Tensor, memory: Memory
) -> Refined:
    """One stage from boxes (B, Q, 4), cx cy w h in 0..1 of the frame, and edges (B, Q, 4 R) or None."""
    stage = sigmoid_stage(logits, boxes, memory.frame)
    return Refined(
        stage.logits,
        stage.activation,
        stage.boxes,
        stage.valid,
        edges=None if edges is None else edges.unflatten(-1, (4, -1)),  # (B, Q, 4, R)
        embeddings=state,
        initial=initial,
    )


def _clamped(stage: Predictions, memory: Memory) -> Predictions:
    """The stage with cx cy w h clamped to 0..1 of the frame, as the host trains and matches boxes.

    The distances can give a box with a negative width or height.
    """
    relative = to_relative(stage.boxes, memory.frame).clamp(min=0, max=1)
    return replace(stage, boxes=to_pixels(relative, memory.frame))


def _with_next_edges(stages: Sequence[Refined], next_stages: Sequence[Refined]) -> list[Refined]:
    """The stages with the edges of one layer later, as the host pairs them; see the module docstring."""
    return [
        replace(stage, edges=later.edges, initial=later.initial)
        for stage, later in zip(stages, next_stages, strict=True)
    ]


def d_fine(config: ModelConfig, backbone: str, classes: Sequence[str], **host: Any) -> QueryDetector:
    """D-FINE with published initial weights; see `hybrid_build.construct`. host: fields of `DFineConfig`."""
    model = construct(DFineConfig, DFineForObjectDetection, config, backbone, classes, host)
    return assemble(DFINE(model, classes, config.strides), config)
