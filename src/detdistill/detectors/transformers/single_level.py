"""The adapter of DETR, Conditional DETR and DAB-DETR of transformers. What differs between them is a `SingleLevelSpec`.

All three have one feature level, learned queries, and the same heads for every decoder layer.

The host's own forward is not called. Its parts are called in its order, so that `observe` can stop early and the
decoder can run again on other queries.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from detdistill.detectors.backbone import check_channels
from detdistill.detectors.images import normalize, valid_mask
from detdistill.detectors.queries.detector import Family, Features, QueryDetector, assemble
from detdistill.detectors.queries.frames import expand_queries, to_batch_frame, valid_fraction
from detdistill.detectors.queries.matching import Matcher
from detdistill.detectors.queries.stages import token_maps
from detdistill.detectors.registry import NATIVE
from detdistill.detectors.transformers.host import (
    conv_encoder,
    for_width,
    layer_counts,
    native_config,
    timm_config,
    unfreeze_backbone,
)
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.types import Activation, Batch, DetectorInfo, Predictions, QueryInfo, QueryPart, QuerySet, Targets

Losses = Callable[[Sequence[Predictions], Tensor, Targets], dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Memory:
    """What the decoder reads. S = H W is the number of cells.

    tokens: the output of the encoder, row after row, (B, S, D).
    positions: the sine embeddings of the tokens, (B, S, D).
    mask: True inside the image, (B, S).
    shape: (rows, columns).
    fraction: the fraction of the padded batch's width and height that the image fills, (B, 1, 2).
    frame: valid (height, width), which boxes are relative to, (B, 2).
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor
    shape: tuple[int, int]
    fraction: Tensor
    frame: Tensor

    @property
    def maps(self) -> tuple[Tensor, ...]:
        """The tokens as one map, (B, D, H, W)."""
        return token_maps(self.tokens, [self.shape])


def encode_tokens(host: Any, level: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Run the encoder of DETR or Conditional DETR; see `SingleLevelSpec.encode`."""
    positions = flatten(host.position_embedding(level.shape, level.device, torch.float32, mask).to(level.dtype))
    encoded = host.encoder(
        inputs_embeds=flatten(level), attention_mask=mask.flatten(1), spatial_position_embeddings=positions
    )
    return encoded.last_hidden_state, positions


@dataclass(frozen=True)
class SingleLevelSpec:
    """What differs between the detectors with one level. `host` below is the model of transformers without heads.

    kind: the name in DETECTORS.
    config: config class of transformers.
    model: model class of transformers.
    activation: activation of the class logits.
    part: the part of a query set that the decoder reads. The decoder also starts from `content`, or from zeros as in
        the host if there is no content.
    embeddings: attribute of the host with the learned queries.
    timm_backbone: path of the timm backbone inside the model.
    decode: (model, part (B, Q, D or 4), content (B, Q, D), memory) to one stage per decoder layer.
    losses: (config, number of classes) to the criterion.
    initialize: sets the published initial weights of the model in place.
    encode: (host, level (B, D, H, W), mask (B, H, W)) to tokens and their position embeddings, both (B, S, D).
    defaults: config fields with a default that differs from the default of transformers.
    supported: config fields that must have this value.
    """

    kind: str
    config: type[Any]
    model: type[Any]
    activation: Activation
    part: QueryPart
    embeddings: str
    timm_backbone: str
    decode: Callable[[Any, Tensor, Tensor, Memory], tuple[Predictions, ...]]
    losses: Callable[[Any, int], Losses]
    initialize: Callable[[Any], None]
    encode: Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]] = encode_tokens
    defaults: Mapping[str, Any] = field(default_factory=dict)
    supported: Mapping[str, Any] = field(default_factory=dict)


class SingleLevelDETR(Family[Memory]):
    """The `Family` over a model of transformers with one level.

    classes: the labels of the model, in order. strides: the stride of its one level.
    Raises UserError if the model does not fit classes and strides, or has an unsupported config field.
    """

    def __init__(self, spec: SingleLevelSpec, model: Any, classes: Sequence[str], strides: Sequence[int]):
        config = model.config
        if config.num_labels != len(classes) or len(strides) != 1:
            raise UserError(
                f"{spec.kind}: the model has {config.num_labels} labels and one level, but there are {len(classes)} "
                f"classes and strides {tuple(strides)}"
            )
        for name, value in spec.supported.items():
            if getattr(config, name) != value:
                raise UserError(
                    f"{spec.kind}: {name} {getattr(config, name)} is not supported; choose a model with {name} {value}"
                )
        self.spec = spec
        self.model = model
        self.width = config.hidden_size
        self.matcher = Matcher(config.class_cost, config.bbox_cost, config.giou_cost)
        self.losses = spec.losses(config, len(classes))
        self.info = DetectorInfo(
            kind=spec.kind,
            classes=tuple(classes),
            strides=tuple(strides),
            channels={"neck": self.width, "memory": self.width},
            activation=spec.activation,
            queries=QueryInfo(self.width, frozenset({spec.part}), learned=True),
        )

    def neck(self, batch: Batch) -> Features:
        """The projected last map of the backbone. The mask of a cell is the mask of its first pixel."""
        canvas = (batch.images.shape[-2], batch.images.shape[-1])
        source, mask = conv_encoder(self.model)(normalize(batch, *self.statistics), valid_mask(batch.sizes, *canvas))[
            -1
        ]
        level = self.model.model.input_projection(source)  # (B, D, H, W)
        return Features((level,), (mask,), batch.sizes, canvas)

    def encode(self, features: Features) -> Memory:
        level = features.levels[0]
        mask = features.masks[0]
        tokens, positions = self.spec.encode(self.model.model, level, mask)
        fraction = valid_fraction(features.sizes, features.canvas)
        shape = (level.shape[-2], level.shape[-1])
        return Memory(tokens, positions, mask.flatten(1), shape, fraction, features.sizes)

    def queries(self, memory: Memory) -> QuerySet:
        """The learned queries, the same for every image. A reference box covers the same part of every valid area."""
        embeddings = getattr(self.model.model, self.spec.embeddings).weight
        return self._query_set(expand_queries(embeddings, memory.tokens.shape[0]), memory)

    def sample(self, n: int, generator: torch.Generator, memory: Memory) -> QuerySet:
        """Embeddings from a standard normal distribution, like the published embeddings before training.

        If the decoder reads references, the sigmoids of the embeddings are boxes around the middle of the image with
        about half its sides.
        """
        width = self.width if self.spec.part == "position" else 4
        values = torch.randn(n, width, generator=generator, device=generator.device)
        return self._query_set(values.to(memory.tokens.device).expand(memory.tokens.shape[0], -1, -1), memory)

    def decode(self, queries: QuerySet, memory: Memory) -> tuple[Predictions, ...]:
        """Run decoder and heads. Only `part` of the spec and `content` are read; a missing content counts as zeros."""
        part, content = self._read(queries)
        return self.spec.decode(self.model, part, content, memory)

    def _query_set(self, embeddings: Tensor, memory: Memory) -> QuerySet:
        """Queries from embeddings (B, Q, D or 4). For a reference, they are boxes of the valid area before sigmoid."""
        if self.spec.part == "position":
            return QuerySet(position=embeddings)
        return QuerySet(reference=to_batch_frame(embeddings.float().sigmoid(), memory.fraction))

    def _read(self, queries: QuerySet) -> tuple[Tensor, Tensor]:
        """The part that the decoder reads, and the content (B, Q, D).

        Raises ValueError if the part is missing, or if part or content has another shape.
        """
        name = self.spec.part
        part_width = self.width if name == "position" else 4
        part: Tensor | None = getattr(queries, name)
        if part is None or part.shape[-1] != part_width:
            got = f"no {name}" if part is None else f"{part.shape[-1]}"
            raise ValueError(f"the decoder needs queries with a {name} {part_width} wide; got {got}")
        if queries.content is None:
            return part, part.new_zeros(*part.shape[:-1], self.width)
        if queries.content.shape != (*part.shape[:-1], self.width):
            raise ValueError(
                f"the decoder needs a content {self.width} wide for every {name}; got {tuple(queries.content.shape)}"
            )
        return part, queries.content


def build(
    spec: SingleLevelSpec, config: ModelConfig, backbone: str, classes: Sequence[str], host: Mapping[str, Any]
) -> QueryDetector:
    """The detector of a spec with published initial weights, on a timm backbone or the native one. Needs no network.

    host: fields of the host's config; they override all others. Raises UserError if strides, width or backbone do not
    fit.
    """
    strides = config.strides
    if len(strides) != 1:
        raise UserError(f"model.strides {strides}: {spec.kind} has one level; give its stride alone, such as 32")
    # The sines and cosines of the two coordinates take a quarter of the width each.
    divisor = math.lcm(4, host.get("encoder_attention_heads", 8), host.get("decoder_attention_heads", 8))
    check_channels(spec.kind, config.channels, divisor)
    fields: dict[str, Any] = {"num_labels": len(classes), "hidden_size": config.channels, "num_queries": config.queries}
    fields |= spec.defaults
    fields |= layer_counts(config)
    timm_backbone = None
    if backbone == NATIVE:
        blank = spec.config(use_timm_backbone=False).backbone_config
        fields["backbone_config"] = native_config(blank, strides, config.backbone_weights)
    else:
        timm_backbone, widths, fields["backbone_config"] = timm_config(config, backbone, strides)
    model = spec.model(spec.config(**fields | dict(host)))
    if timm_backbone is not None:
        # Replaces the host's backbone, which has frozen parameters, changed norms and random weights.
        model.set_submodule(spec.timm_backbone, timm_backbone)
        model.model.input_projection = for_width(model.model.input_projection, widths[0])
    unfreeze_backbone(conv_encoder(model))
    spec.initialize(model)
    return assemble(SingleLevelDETR(spec, model, classes, strides), config)


def flatten(level: Tensor) -> Tensor:
    """A map (B, D, H, W) as tokens (B, HW, D)."""
    return level.flatten(2).transpose(1, 2)


@torch.no_grad()
def xavier(module: nn.Module, *, packed: bool) -> None:
    """Xavier-uniform weights in every matrix of the module, in place.

    packed: the published attention keeps query, key and value in one matrix with three times the rows, so the weights
    of each are smaller.
    """
    for name, weight in module.named_parameters():
        if weight.ndim > 1:
            joined = packed and name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
            nn.init.xavier_uniform_(weight, gain=math.sqrt(0.5) if joined else 1.0)


@torch.no_grad()
def reset_heads(projection: Any, class_head: Any, box_head: Any) -> None:
    """torch's default initial weights for the neck's projection and the heads, in place, as in DETR."""
    for layer in (projection, class_head, *box_head.layers):
        layer.reset_parameters()


@torch.no_grad()
def set_prior(class_head: Any, box_head: Any) -> None:
    """Initial scores of 0.01 (arXiv:1708.02002), and initial boxes equal to their references, in place."""
    nn.init.constant_(class_head.bias, -math.log(99))
    nn.init.zeros_(box_head.layers[-1].weight)
    nn.init.zeros_(box_head.layers[-1].bias)
