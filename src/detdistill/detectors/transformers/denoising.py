"""Denoising queries of RT-DETR and D-FINE.

They are made from ground truths with noise, and are trained together with the detector's own queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from transformers.models.rt_detr.modeling_rt_detr import get_contrastive_denoising_training_group

from detdistill.detectors.queries.stages import Stage, with_assignments
from detdistill.detectors.transformers.hybrid import Memory, read
from detdistill.types import Assignment, QuerySet


@dataclass(frozen=True, eq=False)
class Noise:
    """Denoising queries, N per image.

    content: (B, N, D). reference: boxes cx cy w h in 0..1 of the padded batch, (B, N, 4).
    mask: added to the logits of the self-attention, (N + Q, N + Q). The Q own queries come last. They do not attend to
    denoising queries, and a group of denoising queries does not attend to other groups.
    assignment: the ground truth that each denoising query was made from.
    groups: how many times each ground truth is used.
    """

    content: Tensor
    reference: Tensor
    mask: Tensor
    assignment: Assignment
    groups: int


def denoise(model: Any, labels: list[dict[str, Any]], memory: Memory) -> Noise | None:
    """The denoising queries of a training step, drawn as in the host. labels: result of `criterion.host_labels`.

    None in eval mode, if the batch has no objects, or if the host's config has no denoising.
    """
    config = model.config
    has_objects = any(len(image["class_labels"]) for image in labels)
    if not model.training or config.num_denoising <= 0 or not has_objects:
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
    groups = meta["dn_num_group"]
    matched = torch.full(content.shape[:2], -1, device=content.device)  # (B, N)
    for row, positive, image in zip(matched, meta["dn_positive_idx"], labels, strict=True):
        row[positive] = torch.arange(len(image["class_labels"]), device=row.device).repeat(groups)
    num_positives = (matched >= 0).sum().clamp(min=1).float()
    assignment = Assignment(matched, torch.ones_like(matched, dtype=torch.bool), num_positives)
    return Noise(content, boxes.sigmoid(), mask, assignment, groups)


def join(noise: Noise | None, queries: QuerySet, memory: Memory) -> tuple[Tensor, Tensor, Tensor | None]:
    """Content (B, N + Q, D), reference (B, N + Q, 4) and attention mask of one decoder run, denoising queries first."""
    content, reference = read(queries, memory)
    if noise is None:
        return content, reference, None
    return torch.cat([noise.content, content], dim=1), torch.cat([noise.reference, reference], dim=1), noise.mask


def split(noise: Noise | None, stages: Sequence[Stage]) -> tuple[list[Stage], list[Stage]]:
    """The stages of the denoising queries, with their assignment, and the stages of the own queries."""
    if noise is None:
        return [], list(stages)
    count = noise.content.shape[1]
    noisy = [_select(stage, slice(count)) for stage in stages]
    own = [_select(stage, slice(count, None)) for stage in stages]
    return with_assignments(noisy, [noise.assignment] * len(noisy)), own


def _select(stage: Stage, rows: slice) -> Stage:
    """The stage with these queries only."""
    selected: dict[str, Any] = {}
    for item in fields(stage):
        value = getattr(stage, item.name)
        if isinstance(value, Tensor):
            selected[item.name] = value[:, rows]
    return replace(stage, **selected)
