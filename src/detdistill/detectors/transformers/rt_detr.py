"""RT-DETR (arXiv:2304.08069) and RT-DETRv2 (arXiv:2407.17140) from transformers, taken apart into neck, decoder input, decoder and heads.

The host's own forward is not called: its parts are, in its order, so that a look may stop early and the decoder may run again on other
queries. Equal to the host's forward and losses (tests); where a batch has fewer tokens than there are queries, all of them are taken, and the
host would stop.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrV2Config, RTDetrV2ForObjectDetection
from transformers.loss.loss_rt_detr import RTDetrLoss
from transformers.models.rt_detr.modeling_rt_detr import inverse_sigmoid

from detdistill.detectors.queries.detector import Features, QueryDetector, assemble
from detdistill.detectors.queries.frames import to_relative
from detdistill.detectors.transformers import hybrid
from detdistill.detectors.transformers.criterion import StageCriterion, host_labels, object_count
from detdistill.detectors.transformers.hybrid import Memory
from detdistill.recipe import ModelConfig
from detdistill.types import Assignment, Batch, Predictions, QuerySet, Targets


class RTDETR:
    """The `Family` over an `RTDetrForObjectDetection` or `RTDetrV2ForObjectDetection` whose labels are `classes` in order, strides those of
    its encoder's levels."""

    def __init__(
        self,
        model: RTDetrForObjectDetection | RTDetrV2ForObjectDetection,
        classes: Sequence[str],
        strides: Sequence[int],
    ):
        self.info = hybrid.describe(model.config, classes, strides)
        self.model = model
        self.matcher = hybrid.matcher(model.config)
        host = RTDetrLoss(model.config)
        self.losses = StageCriterion(host, host.weight_dict, ("vfl", "boxes"))

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

    def decode(self, queries: QuerySet, memory: Memory) -> tuple[Predictions, ...]:
        return tuple(self._decode(*hybrid.joined(None, queries, memory), memory))

    def match(self, stages: Sequence[Predictions], memory: Memory, targets: Targets) -> tuple[Assignment, ...]:
        return self.matcher(stages, memory.frame, targets)

    def criterion(self, stages: Sequence[Predictions], memory: Memory, targets: Targets) -> dict[str, Tensor]:
        """The classification term is the varifocal loss."""
        return self.losses(stages, memory.frame, targets)

    def learn(
        self, queries: QuerySet, memory: Memory, targets: Targets
    ) -> tuple[tuple[Predictions, ...], dict[str, Tensor]]:
        """Terms of the encoder's choice end in `_encoder`, those of the noise in layer i in `_denoising_i`."""
        labels, count = host_labels(targets, memory.frame), object_count(targets, memory.frame)
        noise = hybrid.denoise(self.model, labels, memory)
        noisy, own = hybrid.parted(noise, self._decode(*hybrid.joined(noise, queries, memory), memory))
        own = [*own, memory.encoder_stage()]
        *stages, encoder = hybrid.matched(own, self.match(own, memory, targets))
        terms = self.criterion(stages, memory, targets)
        terms |= hybrid.suffixed(self.criterion([encoder], memory, targets), "_encoder")
        for index, stage in enumerate(noisy):
            outputs = {"logits": stage.logits, "pred_boxes": to_relative(stage.boxes, memory.frame)}
            found = self.losses.stage(outputs, stage, labels, count * (noise.groups if noise else 1))
            terms |= hybrid.suffixed(found, f"_denoising_{index}")
        return tuple(stages), terms

    def _decode(self, state: Tensor, reference: Tensor, mask: Tensor | None, memory: Memory) -> list[Predictions]:
        host: Any = self.model.model.decoder
        layout, stages = memory.layout(), []
        for layer, classify, regress in zip(host.layers, host.class_embed, host.bbox_embed, strict=True):
            state = layer(
                state,
                object_queries_position_embeddings=host.query_pos_head(reference),
                reference_points=reference[:, :, None],
                encoder_attention_mask=mask,
                **layout,
            )
            boxes = (
                regress(state).float() + inverse_sigmoid(reference)
            ).sigmoid()  # half precision has no room for pixels
            stages.append(hybrid.predictions(classify(state), boxes, memory, state))
            reference = boxes.detach()
        return stages


def rt_detr(config: ModelConfig, backbone: str, classes: Sequence[str], **host: Any) -> QueryDetector:
    """From config, offline, on a timm backbone or the native one. host: fields of `RTDetrConfig` laid over all else.

    Raises UserError where strides, width or backbone don't fit.
    """
    return _build((RTDetrConfig, RTDetrForObjectDetection), config, backbone, classes, host)


def rt_detr_v2(config: ModelConfig, backbone: str, classes: Sequence[str], **host: Any) -> QueryDetector:
    """As `rt_detr`, with fields of `RTDetrV2Config`."""
    return _build((RTDetrV2Config, RTDetrV2ForObjectDetection), config, backbone, classes, host)


def _build(
    kinds: tuple[type[Any], type[Any]], config: ModelConfig, backbone: str, classes: Sequence[str], host: dict[str, Any]
) -> QueryDetector:
    model, norms = hybrid.construct(kinds, config, backbone, classes, host)
    return assemble(RTDETR(model, classes, config.strides), config, norms)
