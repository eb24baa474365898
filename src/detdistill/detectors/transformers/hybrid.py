"""What RT-DETR, RT-DETRv2 and D-FINE of transformers share: a hybrid encoder, queries chosen from its tokens, and denoising.

They know no padding: boxes are relative to the padded batch, and images are 0..1 as they are.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.models.rt_detr.modeling_rt_detr import get_contrastive_denoising_training_group

from detdistill.detectors.backbone import check_strides
from detdistill.detectors.images import normalize
from detdistill.detectors.queries.detector import Features, token_maps
from detdistill.detectors.queries.frames import canvas_of, to_pixels
from detdistill.detectors.queries.matching import Matcher
from detdistill.detectors.transformers.host import NATIVE, depths, keeps_norms, native_config, thaw, timm_config
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.types import Assignment, Batch, DetectorInfo, EdgeInfo, Predictions, QueryInfo, QuerySet

# Of a host's config: what is served alone, and why.
SERVED: dict[str, tuple[Any, str]] = {
    "eval_size": (None, "transformers then leaves out the position embeddings in evaluation"),
    "learn_initial_query": (False, "transformers' own forward stops with it"),
    "use_focal_loss": (True, "its scores are sigmoids"),
}

Stage = TypeVar("Stage", bound=Predictions)


@dataclass(frozen=True, eq=False)
class Memory:
    """What the decoder reads. tokens (B, S, D): levels one after another. shapes: rows and columns of each. frame (B, 2): the padded batch.
    sizes (B, 2). Of the tokens chosen as queries: content (B, Q, D), without a gradient, logits (B, Q, K), and boxes (B, Q, 4), cx cy w h
    in 0..1 of the frame."""

    tokens: Tensor
    shapes: tuple[tuple[int, int], ...]
    frame: Tensor
    sizes: Tensor
    content: Tensor
    logits: Tensor
    boxes: Tensor

    @property
    def maps(self) -> tuple[Tensor, ...]:
        """The tokens of each level, (B, D, H, W)."""
        return token_maps(self.tokens, self.shapes)

    def layout(self) -> dict[str, Any]:
        """The arguments by which a decoder layer finds its way in the tokens."""
        table = torch.tensor(self.shapes, device=self.tokens.device)
        return {"encoder_hidden_states": self.tokens, "spatial_shapes": table, "spatial_shapes_list": list(self.shapes)}

    def encoder_stage(self) -> Predictions:
        """What the encoder said of the tokens that it chose."""
        return predictions(self.logits, self.boxes, self)


@dataclass(frozen=True, eq=False)
class Noise:
    """Queries made from ground truths, N an image: content (B, N, D), reference (B, N, 4). mask (N + Q, N + Q), added to the attention's
    logits: the own queries, which come behind, don't see them, nor does one group another. groups: how often each ground truth is in."""

    content: Tensor
    reference: Tensor
    mask: Tensor
    assignment: Assignment
    groups: int


def describe(
    config: Any, classes: Sequence[str], strides: Sequence[int], edges: EdgeInfo | None = None
) -> DetectorInfo:
    """Raises UserError where the host's config is not served, or doesn't fit classes and strides."""
    kind, levels = config.model_type, len(config.encoder_in_channels)
    if config.num_labels != len(classes) or levels != len(strides) or config.num_feature_levels != levels:
        has = (
            f"{config.num_labels} labels, {levels} levels in its encoder and {config.num_feature_levels} in its decoder"
        )
        raise UserError(
            f"{kind}: the model has {has}, but there are {len(classes)} classes and strides {tuple(strides)}"
        )
    for name, (value, reason) in SERVED.items():
        if getattr(config, name) != value:
            raise UserError(
                f"{kind}: {name} {getattr(config, name)} is not served ({reason}); take a model with {name} {value}"
            )
    return DetectorInfo(
        kind=kind,
        classes=tuple(classes),
        strides=tuple(strides),
        channels={"neck": config.encoder_hidden_dim, "memory": config.d_model},
        activation="sigmoid",
        edges=edges,
        queries=QueryInfo(config.d_model, frozenset({"content", "reference"})),
    )


def matcher(config: Any) -> Matcher:
    costs = (config.matcher_class_cost, config.matcher_bbox_cost, config.matcher_giou_cost)
    return Matcher(*costs, alpha=config.matcher_alpha, gamma=config.matcher_gamma)


def neck(host: Any, batch: Batch) -> Features:
    """The hybrid encoder's maps. Raises UserError unless each level has half the cells of the finer one."""
    canvas = (batch.images.shape[-2], batch.images.shape[-1])
    sources = host.backbone.model(normalize(batch, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))).feature_maps
    levels = [project(source) for project, source in zip(host.encoder_input_proj, sources, strict=True)]
    sides = [(level.shape[-2], level.shape[-1]) for level in levels]
    if any(fine != (2 * coarse[0], 2 * coarse[1]) for fine, coarse in itertools.pairwise(sides)):
        raise UserError(f"{host.config.model_type}: images of {canvas[0]} x {canvas[1]} give levels of {sides} cells, which can't be added up; "
                        "pad them to a multiple of the coarsest stride")  # fmt: skip
    return Features(tuple(host.encoder(levels).last_hidden_state), (), batch.sizes, canvas)


def encode(host: Any, features: Features) -> Memory:
    """The decoder's view of the maps, and its best tokens: as many as there are queries, or all."""
    maps = [project(level) for project, level in zip(host.decoder_input_proj, features.levels, strict=True)]
    shapes = tuple((level.shape[-2], level.shape[-1]) for level in maps)
    tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
    anchors, inside = host.generate_anchors(shapes, device=tokens.device, dtype=torch.float32)  # before the sigmoid
    vectors = host.enc_output(inside.to(tokens.dtype) * tokens)
    logits = host.enc_score_head(vectors).float()
    best = logits.amax(-1).topk(min(host.config.num_queries, logits.shape[1]), dim=1).indices[..., None]
    chosen = vectors.gather(1, best.expand(-1, -1, vectors.shape[-1]))
    shift = host.enc_bbox_head(chosen).float()
    boxes = (shift + anchors.expand(len(tokens), -1, -1).gather(1, best.expand(-1, -1, 4))).sigmoid()
    own = logits.gather(1, best.expand(-1, -1, logits.shape[-1]))
    return Memory(
        tokens, shapes, canvas_of(features.sizes, *features.canvas), features.sizes, chosen.detach(), own, boxes
    )


def queries(memory: Memory) -> QuerySet:
    """The encoder's choice, the best first; no gradient goes back through it."""
    return QuerySet(content=memory.content, reference=memory.boxes.detach())


def sample(n: int, generator: torch.Generator, memory: Memory) -> QuerySet:
    """Content standard normal, as the layer norm leaves it, and boxes of all places and sizes in each image's valid area."""
    batch, device, width = len(memory.tokens), memory.tokens.device, memory.content.shape[-1]
    content = torch.randn(n, width, generator=generator, device=generator.device).to(device)
    boxes = torch.rand(n, 4, generator=generator, device=generator.device).to(device)
    share = (memory.sizes / memory.frame).flip(-1).repeat(1, 2)[:, None]
    return QuerySet(content=content.expand(batch, -1, -1), reference=boxes * share)


def read(given: QuerySet, memory: Memory) -> tuple[Tensor, Tensor]:
    """content (B, Q, D) and reference (B, Q, 4). Raises ValueError for missing or ill-fitting ones."""
    width, content, reference = memory.content.shape[-1], given.content, given.reference
    if (
        content is None
        or reference is None
        or content.shape[-1] != width
        or reference.shape != (*content.shape[:-1], 4)
    ):
        got = ", ".join(
            f"{name} {None if part is None else tuple(part.shape)}"
            for name, part in (("content", content), ("reference", reference))
        )
        raise ValueError(
            f"the decoder asks for queries with a content {width} wide and a reference box each; got {got}"
        )
    return content, reference


def predictions(logits: Tensor, boxes: Tensor, memory: Memory, embeddings: Tensor | None = None) -> Predictions:
    """boxes (B, Q, 4): cx cy w h in 0..1 of the memory's frame."""
    valid = torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    return Predictions(logits.float(), "sigmoid", to_pixels(boxes, memory.frame), valid, embeddings=embeddings)


def denoise(model: Any, labels: list[dict[str, Any]], memory: Memory) -> Noise | None:
    """What a training step puts in front of the own queries, noise drawn as the host draws it; None in evaluation, without objects, or where
    the host's config has none. labels: as of `criterion.host_labels`."""
    config = model.config
    if not model.training or config.num_denoising <= 0 or not any(len(one["class_labels"]) for one in labels):
        return None
    content, boxes, mask, meta = get_contrastive_denoising_training_group(
        labels,
        config.num_labels,
        memory.content.shape[1],
        model.model.denoising_class_embed,
        config.num_denoising,
        config.label_noise_ratio,
        config.box_noise_scale,
    )
    matched = torch.full(content.shape[:2], -1, device=content.device)
    for row, places, one in zip(matched, meta["dn_positive_idx"], labels, strict=True):
        row[places] = torch.arange(len(one["class_labels"]), device=row.device).repeat(meta["dn_num_group"])
    found = Assignment(matched, torch.ones_like(matched, dtype=torch.bool), (matched >= 0).sum().clamp(min=1).float())
    return Noise(content, boxes.sigmoid(), mask, found, meta["dn_num_group"])


def joined(noise: Noise | None, given: QuerySet, memory: Memory) -> tuple[Tensor, Tensor, Tensor | None]:
    """Content, reference and attention mask of a decoder's run, the noise in front."""
    content, reference = read(given, memory)
    if noise is None:
        return content, reference, None
    return torch.cat([noise.content, content], dim=1), torch.cat([noise.reference, reference], dim=1), noise.mask


def parted(noise: Noise | None, stages: Sequence[Stage]) -> tuple[list[Stage], list[Stage]]:
    """The stages of the noise, with its assignment, and those of the own queries."""
    if noise is None:
        return [], list(stages)
    count = noise.content.shape[1]
    return [replace(_rows(stage, slice(count)), assignment=noise.assignment) for stage in stages], [
        _rows(stage, slice(count, None)) for stage in stages
    ]


def _rows(stage: Stage, rows: slice) -> Stage:
    parts: dict[str, Any] = {item.name: getattr(stage, item.name) for item in fields(stage)}
    cut: dict[str, Any] = {name: part[:, rows] for name, part in parts.items() if isinstance(part, Tensor)}
    return replace(stage, **cut)


def matched(stages: Sequence[Stage], found: Sequence[Assignment]) -> list[Stage]:
    return [replace(stage, assignment=own) for stage, own in zip(stages, found, strict=True)]


def suffixed(terms: dict[str, Tensor], suffix: str) -> dict[str, Tensor]:
    return {name + suffix: term for name, term in terms.items()}


def construct(
    kinds: tuple[type[Any], type[Any]], config: ModelConfig, backbone: str, classes: Sequence[str], host: dict[str, Any]
) -> tuple[Any, tuple[nn.Module, ...]]:
    """The host of these classes (of its config, of the model), on a timm backbone or its own, and the frozen norms. host: fields of its config
    laid over all else. Raises UserError where strides, width or backbone don't fit."""
    kind, strides, width = kinds[0].model_type, config.strides, config.channels
    check_strides(strides)
    divisor = math.lcm(4, host.get("encoder_attention_heads", 8), host.get("decoder_attention_heads", 8))
    if width % divisor:
        raise UserError(f"model.channels {width}: {kind} needs a multiple of {divisor}, such as 256")
    if kind != "rt_detr" and (config.decoder_layers or host.get("decoder_layers", 2)) < 2:
        raise UserError(
            f"model.decoder_layers: transformers can't build a {kind} decoder of one layer; take at least 2 decoder layers"
        )
    given: dict[str, Any] = {
        "num_labels": len(classes),
        "num_queries": config.queries,
        "encoder_hidden_dim": width,
        "d_model": width,
    }
    given |= {
        "encoder_in_channels": [width] * len(strides),
        "decoder_in_channels": [width] * len(strides),
        "feat_strides": list(strides),
    }
    given |= {
        "num_feature_levels": len(strides),
        "encode_proj_layers": [len(strides) - 1],
        "freeze_backbone_batch_norms": False,
    }
    given |= {"decoder_n_levels": len(strides)} if kind == "rt_detr_v2" else {}
    given |= depths(config)
    body = None
    if backbone == NATIVE:
        given["backbone_config"] = native_config(kinds[0]().backbone_config, strides, config.backbone_weights)
    else:
        body, given["backbone_config"] = timm_config(config, backbone, strides)
        if len(given["backbone_config"]["out_indices"]) < len(strides):
            raise UserError(
                f"model.strides {strides}: {kind} has the backbone's levels only, and {backbone!r} has none of {strides[-1]}"
            )
    model = kinds[1](kinds[0](**given | host))
    model.config.encoder_in_channels = list(model.model.backbone.intermediate_channel_sizes)
    if body is not None:
        model.model.backbone.model._backbone = body  # in place of the host's: its weights loaded
    norms = thaw(model.model.backbone, frozen_norms=keeps_norms(config))
    initialize(model)
    return model, norms


@torch.no_grad()
def initialize(model: Any) -> None:
    """Starting weights as published, in place. A host built from config starts otherwise: weights of deviation 0.01, those of RT-DETR's batch
    norms too, about 0, and class scores of 1 / (K + 1) instead of the focal loss's 0.01. Its deformable attention and gates are right."""
    host, decoder = model.model, model.model.decoder
    for name, module in host.named_modules():
        if (
            not name.startswith("backbone")
            and "encoder_attn" not in name
            and "gateway" not in name
            and hasattr(module, "reset_parameters")
        ):
            module.reset_parameters()
    for name, weight in host.named_parameters():
        if "self_attn." in name and weight.ndim == 1:
            nn.init.zeros_(weight)
        elif (
            "self_attn." in name and "o_proj" not in name
        ):  # the published attention keeps query, key and value in one matrix
            nn.init.xavier_uniform_(weight, gain=math.sqrt(0.5))
    for layer in (host.enc_output[0], *decoder.query_pos_head.layers):
        nn.init.xavier_uniform_(layer.weight)
    for classify in (host.enc_score_head, *decoder.class_embed):
        nn.init.constant_(classify.bias, -math.log(99))  # score 0.01, arXiv:1708.02002
    for regress in _regressors(host):
        nn.init.zeros_(regress.layers[-1].weight)
        nn.init.zeros_(regress.layers[-1].bias)


def _regressors(host: Any) -> Iterator[Any]:
    """The perceptrons that begin by saying nothing."""
    yield host.enc_bbox_head
    yield from host.decoder.bbox_embed
    if host.config.model_type == "d_fine":
        yield host.decoder.pre_bbox_head
        yield from (estimate.reg_conf for estimate in host.decoder.lqe_layers)
