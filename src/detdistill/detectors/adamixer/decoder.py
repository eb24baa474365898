"""AdaMixer's decoder, arXiv:2203.16507, section 3.4: stages that look, mix, and move the queries' boxes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detdistill.detectors.adamixer.boxes import log_iof, position_embedding, refine, to_boxes
from detdistill.detectors.adamixer.mixing import Mixing
from detdistill.detectors.adamixer.sampling import Sampling

PRIOR = 0.01  # score of every class at first, arXiv:1708.02002


@dataclass(frozen=True)
class Sizes:
    """What the recipe has no field for. groups: of channels that are sampled and mixed apart. in_points, out_points: of each group, before and
    after the spatial mixing. heads: of the self-attention. ffn: its hidden channels."""

    groups: int = 4
    in_points: int = 32
    out_points: int = 128
    heads: int = 8
    ffn: int = 2048

    @property
    def multiple(self) -> int:
        """What the decoder's width must be a multiple of: groups, heads, and the sine and cosine of four numbers."""
        return math.lcm(self.groups, self.heads, 8)


class Stage(nn.Module):
    """Self-attention that keeps to overlapping boxes, sampling and mixing, feed-forward; each with a residual and a layer norm."""

    def __init__(self, width: int, classes: int, sizes: Sizes):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, sizes.heads, batch_first=True)
        self.overlap = nn.Parameter(torch.empty(sizes.heads))
        self.sampling = Sampling(width, sizes.groups, sizes.in_points)
        self.mixing = Mixing(width, sizes.groups, sizes.in_points, sizes.out_points)
        self.feed_forward = nn.Sequential(nn.Linear(width, sizes.ffn), nn.ReLU(), nn.Linear(sizes.ffn, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.classify, self.regress = (
            nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU()) for _ in range(2)
        )
        self.class_embed, self.bbox_embed = nn.Linear(width, classes), nn.Linear(width, 4)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: a box stays where it is, every score is PRIOR, sampling and mixing do not hang on the content."""
        nn.init.uniform_(self.overlap, 0.0, 4.0)
        for part in (self.attention, self.feed_forward, self.classify, self.regress, self.class_embed):
            for weight in part.parameters():
                if weight.ndim > 1:
                    nn.init.xavier_uniform_(weight)
        nn.init.constant_(self.class_embed.bias, math.log(PRIOR / (1 - PRIOR)))
        nn.init.zeros_(self.bbox_embed.weight)
        nn.init.zeros_(self.bbox_embed.bias)

    def forward(
        self, content: Tensor, xyzr: Tensor, levels: Sequence[Tensor], strides: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """content (B, Q, D), xyzr (B, Q, 4) to content, logits (B, Q, K) and the box's correction (B, Q, 4); see `boxes.refine`."""
        content = self.norms[0](self.attend(content, xyzr))
        content = self.norms[1](self.mixing(self.sampling(content, xyzr, levels, strides), content))
        content = self.norms[2](content + self.feed_forward(content))
        return content, self.class_embed(self.classify(content)), self.bbox_embed(self.regress(content))

    def attend(self, content: Tensor, xyzr: Tensor) -> Tensor:
        """The place of a query becomes part of its content, residual included. Boxes get no gradient here, as published."""
        place = xyzr.detach()
        placed = content + position_embedding(place, content.shape[-1]).to(content.dtype)
        bias = self.overlap[:, None, None] * log_iof(to_boxes(place))[:, None]  # (B, heads, Q, Q)
        told, _ = self.attention(
            placed, placed, placed, attn_mask=bias.flatten(0, 1).to(content.dtype), need_weights=False
        )
        return placed + told


class Decoder(nn.Module):
    """content: the learned queries (Q, D). Their boxes are not learned."""

    def __init__(self, width: int, queries: int, depth: int, classes: int, sizes: Sizes):
        super().__init__()
        self.content = nn.Embedding(queries, width)
        self.stages = nn.ModuleList(Stage(width, classes, sizes) for _ in range(depth))

    def forward(
        self, content: Tensor, xyzr: Tensor, levels: Sequence[Tensor], strides: Sequence[int]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Content (B, Q, D), logits (B, Q, K) and boxes xyxy (B, Q, 4) in pixels after every stage. A stage's boxes learn nothing from the
        stages after it; content does."""
        found = []
        for stage in self.stages:
            content, logits, delta = stage(content, xyzr, levels, strides)
            moved = refine(xyzr, delta.to(xyzr.dtype))
            found.append((content, logits, to_boxes(moved)))
            xyzr = moved.detach()
        return found
