"""Adaptive mixing, arXiv:2203.16507, section 3.3: two layers of an MLP-Mixer over a query's samples, their weights told from its content."""

import torch.nn.functional as F
from torch import Tensor, nn


class Mixing(nn.Module):
    """Mixes the samples of each group over channels, then over points (`in_points` to `out_points`), into the query."""

    def __init__(self, width: int, groups: int, in_points: int, out_points: int):
        super().__init__()
        self.groups, self.channels, self.in_points, self.out_points = groups, width // groups, in_points, out_points
        self.generator = nn.Linear(width, groups * (self.channels**2 + in_points * out_points))
        self.project = nn.Linear(groups * out_points * self.channels, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All queries mix alike at first: by the generator's bias, which stays as drawn."""
        nn.init.zeros_(self.generator.weight)
        nn.init.xavier_uniform_(self.project.weight)

    def forward(self, samples: Tensor, content: Tensor) -> Tensor:
        """samples (B, Q, G, P, C), content (B, Q, D) to (B, Q, D), D = G C."""
        weights = self.generator(content).unflatten(-1, (self.groups, -1))
        channel, spatial = weights.split([self.channels**2, self.in_points * self.out_points], dim=-1)
        mixed = mix(samples, channel.unflatten(-1, (-1, self.channels)), spatial.unflatten(-1, (-1, self.in_points)))
        return content + self.project(mixed.flatten(2))


def mix(samples: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
    """samples (..., P, C), channel (..., C, C), spatial (..., R, P) to (..., R, C): ReLU(LN(spatial ReLU(LN(samples channel)))), where LN
    goes over points and channels together and learns nothing."""
    return _normed(spatial @ _normed(samples @ channel))


def _normed(values: Tensor) -> Tensor:
    return F.layer_norm(values, values.shape[-2:]).relu()
