"""The decoder of AdaMixer, arXiv:2203.16507, section 3.4.

Each stage samples features, mixes them, and refines the boxes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from detdistill.detectors.adamixer.boxes import log_iof, position_embedding, refine, to_boxes
from detdistill.detectors.adamixer.mixing import Mixing
from detdistill.detectors.adamixer.sampling import Sampling

Count = Annotated[int, Field(ge=1)]
PRIOR = 0.01  # initial score of every class, arXiv:1708.02002


@dataclass(frozen=True)
class Sizes:
    """Sizes of the decoder that are not fields of `ModelConfig`.

    groups: channels are sampled and mixed in this many separate groups.
    in_points: points per group before the spatial mixing.
    out_points: points per group after the spatial mixing.
    heads: heads of the self-attention.
    ffn: hidden channels of the feed-forward network.
    """

    groups: Count = 4
    in_points: Count = 32
    out_points: Count = 128
    heads: Count = 8
    ffn: Count = 2048

    @property
    def multiple(self) -> int:
        """The decoder's width must be a multiple of this: groups, heads, and 8 for sine and cosine of four numbers."""
        return math.lcm(self.groups, self.heads, 8)


class Stage(nn.Module):
    """Self-attention among overlapping boxes, then sampling and mixing, then a feed-forward network.

    Each of the three has a residual and a layer norm.
    """

    def __init__(self, width: int, classes: int, sizes: Sizes):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, sizes.heads, batch_first=True)
        self.overlap = nn.Parameter(torch.empty(sizes.heads))
        self.sampling = Sampling(width, sizes.groups, sizes.in_points)
        self.mixing = Mixing(width, sizes.groups, sizes.in_points, sizes.out_points)
        self.feed_forward = nn.Sequential(nn.Linear(width, sizes.ffn), nn.ReLU(), nn.Linear(sizes.ffn, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.classify = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU())
        self.regress = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU())
        self.class_embed = nn.Linear(width, classes)
        self.bbox_embed = nn.Linear(width, 4)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Published initial weights: boxes do not move, and every score is PRIOR.

        The initial sampling and mixing do not depend on the content; see `Sampling` and `Mixing`.
        """
        nn.init.uniform_(self.overlap, 0.0, 4.0)
        for module in (self.attention, self.feed_forward, self.classify, self.regress, self.class_embed):
            for weight in module.parameters():
                if weight.ndim > 1:
                    nn.init.xavier_uniform_(weight)
        nn.init.constant_(self.class_embed.bias, math.log(PRIOR / (1 - PRIOR)))
        nn.init.zeros_(self.bbox_embed.weight)
        nn.init.zeros_(self.bbox_embed.bias)

    def forward(
        self, content: Tensor, xyzr: Tensor, levels: Sequence[Tensor], strides: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """content (B, Q, D) and xyzr (B, Q, 4) to content, logits (B, Q, K) and box correction (B, Q, 4).

        `boxes.refine` applies the correction.
        """
        content = self.norms[0](self.attend(content, xyzr))
        content = self.norms[1](self.mixing(self.sampling(content, xyzr, levels, strides), content))
        content = self.norms[2](content + self.feed_forward(content))
        return content, self.class_embed(self.classify(content)), self.bbox_embed(self.regress(content))

    def attend(self, content: Tensor, xyzr: Tensor) -> Tensor:
        """The self-attention with its residual, (B, Q, D).

        The position embedding is added to the content, and so to the residual too. Boxes get no gradient here, as
        published.
        """
        detached = xyzr.detach()
        queries = content + position_embedding(detached, content.shape[-1]).to(content.dtype)
        bias = self.overlap[:, None, None] * log_iof(to_boxes(detached))[:, None]  # (B, heads, Q, Q)
        # Not the forward of `attention`: torch can't export it for a batch of any size.
        attention = self.attention
        joined = F.linear(queries, attention.in_proj_weight, attention.in_proj_bias)  # (B, Q, 3 D)
        query, key, value = joined.unflatten(-1, (3, attention.num_heads, -1)).permute(
            2, 0, 3, 1, 4
        )  # (B, heads, Q, d)
        weights = (query @ key.mT * query.shape[-1] ** -0.5 + bias).softmax(-1)  # (B, heads, Q, Q)
        attended = weights.to(value.dtype) @ value
        return queries + attention.out_proj(attended.transpose(1, 2).flatten(2))


class Decoder(nn.Module):
    """All stages, and the learned queries `content` (Q, D). There are no learned boxes."""

    def __init__(self, width: int, queries: int, depth: int, classes: int, sizes: Sizes):
        super().__init__()
        self.content = nn.Embedding(queries, width)
        self.stages = nn.ModuleList(Stage(width, classes, sizes) for _ in range(depth))

    def forward(
        self, content: Tensor, xyzr: Tensor, levels: Sequence[Tensor], strides: Sequence[int]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Content (B, Q, D), logits (B, Q, K) and boxes xyxy (B, Q, 4) in pixels after every stage.

        The boxes of a stage get no gradient from later stages. The content does.
        """
        outputs = []
        for stage in self.stages:
            content, logits, delta = stage(content, xyzr, levels, strides)
            refined = refine(xyzr, delta.to(xyzr.dtype))
            outputs.append((content, logits, to_boxes(refined)))
            xyzr = refined.detach()
        return outputs
