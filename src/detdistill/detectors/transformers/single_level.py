"""What DETR, Conditional DETR and DAB-DETR of transformers share: one feature level, learned queries, and one head for all stages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detdistill.detectors.images import normalize, valid_mask
from detdistill.detectors.queries.detector import Features, token_maps
from detdistill.detectors.transformers.host import NATIVE, depths, native_config, timm_config
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.types import Activation, Batch, DetectorInfo, QueryInfo, QueryPart, QuerySet


@dataclass(frozen=True, eq=False)
class Memory:
    """What the decoder reads. tokens (B, S, D): the encoder's output, row after row. positions (B, S, D): their sine embeddings. mask (B, S):
    True on the image. shape: rows and columns. fraction (B, 1, 2): valid share of the padded batch's width and height. sizes (B, 2)."""

    tokens: Tensor
    positions: Tensor
    mask: Tensor
    shape: tuple[int, int]
    fraction: Tensor
    sizes: Tensor

    @property
    def maps(self) -> tuple[Tensor, ...]:
        """The tokens as one map, (B, D, H, W)."""
        return token_maps(self.tokens, [self.shape])


def describe(
    kind: str, config: Any, classes: Sequence[str], strides: Sequence[int], activation: Activation, part: QueryPart
) -> DetectorInfo:
    """Raises UserError where the host's config doesn't fit classes and strides. part: what the decoder reads of a query set."""
    if config.num_labels != len(classes) or len(strides) != 1:
        has = f"{config.num_labels} labels and one level"
        raise UserError(
            f"{kind}: the model has {has}, but there are {len(classes)} classes and strides {tuple(strides)}"
        )
    return DetectorInfo(
        kind=kind,
        classes=tuple(classes),
        strides=tuple(strides),
        channels={"neck": config.hidden_size, "memory": config.hidden_size},
        activation=activation,
        queries=QueryInfo(config.hidden_size, frozenset({part}), learned=True),
    )


def project(encoder: nn.Module, projection: nn.Module, batch: Batch) -> Features:
    """The projected last map of the host's convolutional encoder; a cell counts where its first pixel does."""
    canvas = (batch.images.shape[-2], batch.images.shape[-1])
    source, mask = encoder(normalize(batch), valid_mask(batch.sizes, *canvas))[-1]
    return Features((projection(source),), (mask,), batch.sizes, canvas)


def flat(level: Tensor) -> Tensor:
    """(B, D, H, W) to tokens (B, H W, D)."""
    return level.flatten(2).transpose(1, 2)


def remember(tokens: Tensor, positions: Tensor, features: Features) -> Memory:
    fraction = features.sizes.flip(-1)[:, None] / features.sizes.new_tensor(features.canvas).flip(-1)
    shape = (features.levels[0].shape[-2], features.levels[0].shape[-1])
    return Memory(tokens, positions, features.masks[0].flatten(1), shape, fraction, features.sizes)


def encode(host: Any, features: Features) -> Memory:
    """The encoder of DETR and Conditional DETR. host: their model without heads."""
    (level,), (mask,) = features.levels, features.masks
    positions = flat(host.position_embedding(level.shape, level.device, torch.float32, mask).to(level.dtype))
    encoded = host.encoder(
        inputs_embeds=flat(level), attention_mask=mask.flatten(1), spatial_position_embeddings=positions
    )
    return remember(encoded.last_hidden_state, positions, features)


def drawn(n: int, width: int, generator: torch.Generator, memory: Memory) -> Tensor:
    """(B, n, width): standard normal as the published embeddings are at first, the same for every image."""
    values = torch.randn(n, width, generator=generator, device=generator.device)
    return values.to(memory.tokens.device).expand(len(memory.tokens), -1, -1)


def read(queries: QuerySet, part: QueryPart, part_width: int, width: int) -> tuple[Tensor, Tensor]:
    """The part that a family reads, and the content (B, Q, D), zeros where there is none. Raises ValueError for missing or ill-fitting ones."""
    values: Tensor | None = getattr(queries, part)
    if values is None or values.shape[-1] != part_width:
        got = f"no {part}" if values is None else f"{values.shape[-1]}"
        raise ValueError(f"the decoder asks for queries with a {part}, {part_width} wide; got {got}")
    if queries.content is None:
        return values, values.new_zeros(*values.shape[:-1], width)
    if queries.content.shape != (*values.shape[:-1], width):
        raise ValueError(
            f"the decoder asks for a content {width} wide for every {part}; got {tuple(queries.content.shape)}"
        )
    return values, queries.content


def host_fields(
    kind: str, config: ModelConfig, backbone: str, classes: Sequence[str], blank: Any, host: dict[str, Any]
) -> tuple[nn.Module | None, dict[str, Any]]:
    """The timm backbone (None: the native one), and the fields of a host's config, those of `host` laid over. blank: the host's config class.

    Raises UserError where strides, width or backbone don't fit.
    """
    strides, width = config.strides, config.channels
    if len(strides) != 1:
        raise UserError(f"model.strides {strides}: {kind} has one level; give its stride alone, such as 32")
    # Sines and cosines of two coordinates take a quarter of the width each.
    divisor = math.lcm(4, host.get("encoder_attention_heads", 8), host.get("decoder_attention_heads", 8))
    if width % divisor:
        raise UserError(f"model.channels {width}: {kind} needs a multiple of {divisor}, such as 256")
    fields: dict[str, Any] = {"num_labels": len(classes), "hidden_size": width, "num_queries": config.queries}
    fields |= depths(config)
    body = None
    if backbone == NATIVE:
        fields["backbone_config"] = native_config(
            blank(use_timm_backbone=False).backbone_config, strides, config.backbone_weights
        )
    else:
        body, fields["backbone_config"] = timm_config(config, backbone, strides)
    return body, fields | host


@torch.no_grad()
def xavier(part: nn.Module, *, packed: bool) -> None:
    """Xavier's uniform weights in every matrix. packed: the published attention keeps query, key and value in one, three times as high."""
    for name, weight in part.named_parameters():
        if weight.ndim > 1:
            joined = packed and name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
            nn.init.xavier_uniform_(weight, gain=math.sqrt(0.5) if joined else 1.0)


@torch.no_grad()
def reset_heads(projection: Any, classify: Any, regress: Any) -> None:
    """torch's own start of the neck's projection and the heads, where DETR leaves it."""
    for layer in (projection, classify, *regress.layers):
        layer.reset_parameters()


@torch.no_grad()
def calm_heads(classify: Any, regress: Any) -> None:
    """Scores of 0.01 (arXiv:1708.02002), and boxes that are their references."""
    nn.init.constant_(classify.bias, -math.log(99))
    nn.init.zeros_(regress.layers[-1].weight)
    nn.init.zeros_(regress.layers[-1].bias)
