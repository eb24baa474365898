"""RT-DETR (arXiv:2304.08069) and RT-DETRv2 (arXiv:2407.17140) of transformers as a `Family`.

The host's own forward is not called. Its parts are called in its order, so that `observe` can stop early and the
decoder can run again on other queries. Stages and losses equal the host's (tests). If a batch has fewer tokens than
queries, all tokens are used; the host fails.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrV2Config, RTDetrV2ForObjectDetection
from transformers.loss.loss_rt_detr import RTDetrLoss
from transformers.models.rt_detr.modeling_rt_detr import inverse_sigmoid

from detdistill.detectors.queries.detector import QueryDetector, assemble
from detdistill.detectors.queries.stages import sigmoid_stage, with_assignments, with_suffix
from detdistill.detectors.transformers import denoising, hybrid
from detdistill.detectors.transformers.criterion import StageCriterion, host_labels, object_count
from detdistill.detectors.transformers.hybrid import HybridDETR, Memory
from detdistill.detectors.transformers.hybrid_build import construct
from detdistill.geometry import to_relative
from detdistill.recipe import ModelConfig
from detdistill.types import Predictions, QuerySet, Targets


class RTDETR(HybridDETR):
    """The `Family` over an `RTDetrForObjectDetection` or `RTDetrV2ForObjectDetection`.

    classes: the labels of the model, in order. strides: the strides of its encoder's levels.
    """

    losses: StageCriterion

    def __init__(
        self,
        model: RTDetrForObjectDetection | RTDetrV2ForObjectDetection,
        classes: Sequence[str],
        strides: Sequence[int],
    ):
        self.info = hybrid.describe(model.config, classes, strides)
        self.model = model
        self.matcher = hybrid.matcher(model.config)
        host_loss = RTDetrLoss(model.config)
        self.losses = StageCriterion(host_loss, host_loss.weight_dict, ("vfl", "boxes"))

    def decode(self, queries: QuerySet, memory: Memory) -> tuple[Predictions, ...]:
        content, reference, mask = denoising.join(None, queries, memory)
        return tuple(self._decode(content, reference, mask, memory))

    def learn(
        self, queries: QuerySet, memory: Memory, targets: Targets
    ) -> tuple[tuple[Predictions, ...], dict[str, Tensor]]:
        """Also trains the encoder's predictions and denoising queries.

        Terms of the encoder end in `_encoder`, those of the denoising queries after layer i in `_denoising_i`.
        """
        labels = host_labels(targets, memory.frame)
        count = object_count(targets, memory.frame)
        noise = denoising.denoise(self.model, labels, memory)
        content, reference, mask = denoising.join(noise, queries, memory)
        noisy, own = denoising.split(noise, self._decode(content, reference, mask, memory))
        own = [*own, memory.encoder_stage()]
        *stages, encoder = with_assignments(own, self.match(own, memory, targets))
        terms = self.criterion(stages, memory, targets)
        terms |= with_suffix(self.criterion([encoder], memory, targets), "_encoder")
        for index, stage in enumerate(noisy):
            outputs = {"logits": stage.logits, "pred_boxes": to_relative(stage.boxes, memory.frame)}
            groups = noise.groups if noise else 1
            stage_terms = self.losses.stage(outputs, stage, labels, count * groups)
            terms |= with_suffix(stage_terms, f"_denoising_{index}")
        return tuple(stages), terms

    def _decode(self, state: Tensor, reference: Tensor, mask: Tensor | None, memory: Memory) -> list[Predictions]:
        """One stage per layer, from content (B, Q, D) and reference boxes (B, Q, 4), cx cy w h in 0..1 of the frame."""
        decoder: Any = self.model.model.decoder
        layout = memory.layout()
        stages = []
        for layer, class_head, box_head in zip(decoder.layers, decoder.class_embed, decoder.bbox_embed, strict=True):
            state = layer(
                state,
                object_queries_position_embeddings=decoder.query_pos_head(reference),
                reference_points=reference[:, :, None],  # (B, Q, 1, 4)
                encoder_attention_mask=mask,
                **layout,
            )
            # In single precision: half precision is too coarse for pixels.
            boxes = (box_head(state).float() + inverse_sigmoid(reference)).sigmoid()
            stages.append(sigmoid_stage(class_head(state), boxes, memory.frame, state))
            reference = boxes.detach()
        return stages


def rt_detr(config: ModelConfig, backbone: str, classes: Sequence[str], **host: Any) -> QueryDetector:
    """RT-DETR with published initial weights; see `hybrid_build.construct`. host: fields of `RTDetrConfig`."""
    model = construct(RTDetrConfig, RTDetrForObjectDetection, config, backbone, classes, host)
    return assemble(RTDETR(model, classes, config.strides), config)


def rt_detr_v2(config: ModelConfig, backbone: str, classes: Sequence[str], **host: Any) -> QueryDetector:
    """RT-DETRv2 with published initial weights; see `hybrid_build.construct`. host: fields of `RTDetrV2Config`."""
    model = construct(RTDetrV2Config, RTDetrV2ForObjectDetection, config, backbone, classes, host)
    return assemble(RTDETR(model, classes, config.strides), config)
