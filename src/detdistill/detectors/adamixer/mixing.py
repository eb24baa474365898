"""Adaptive mixing, arXiv:2203.16507, section 3.3.

Two layers of an MLP-Mixer over the samples of each query. Their weights are computed from the content of the query.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Mixing(nn.Module):
    """Mixes the samples of each group over channels, then over points (`in_points` to `out_points`), into the query."""

    def __init__(self, width: int, groups: int, in_points: int, out_points: int):
        super().__init__()
        self.groups = groups
        self.channels = width // groups
        self.in_points = in_points
        self.out_points = out_points
        self.generator = nn.Linear(width, groups * (self.channels**2 + in_points * out_points))
        self.project = nn.Linear(groups * out_points * self.channels, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Published initial weights. At first all queries mix with the same weights, the generator's random bias."""
        nn.init.zeros_(self.generator.weight)
        nn.init.xavier_uniform_(self.project.weight)

    def forward(self, samples: Tensor, content: Tensor) -> Tensor:
        """samples (B, Q, G, P, C) and content (B, Q, D), D = G C, to (B, Q, D)."""
        weights = self.generator(content).unflatten(-1, (self.groups, -1))  # (B, Q, G, C C + P R)
        channel, spatial = weights.split([self.channels**2, self.in_points * self.out_points], dim=-1)
        channel = channel.unflatten(-1, (-1, self.channels))  # (B, Q, G, C, C)
        spatial = spatial.unflatten(-1, (-1, self.in_points))  # (B, Q, G, R, P)
        mixed = mix(samples, channel, spatial)  # (B, Q, G, R, C)
        return content + self.project(mixed.flatten(2))


def mix(samples: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
    """samples (..., P, C), channel (..., C, C) and spatial (..., R, P) to (..., R, C).

    ReLU(LN(spatial ReLU(LN(samples channel)))). LN is over points and channels together and has no parameters.
    """
    return _normed_relu(spatial @ _normed_relu(samples @ channel))


def _normed_relu(values: Tensor) -> Tensor:
    """ReLU of the layer norm over the last two axes."""
    return F.layer_norm(values, values.shape[-2:]).relu()
