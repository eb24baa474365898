"""The two towers of a dense head, run step by step so that a method can leave at any depth and another head's features can enter there.

No hooks: torchvision's RetinaNet overwrites a convolution's output with its in-place ReLU, so a hook would keep the wrong tensor.
"""

from collections.abc import Callable, Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from detdistill.types import Predictions, Towers, TowerState

Block = Sequence[nn.Module]  # a convolution and its norm, without the activation
Predict = Callable[
    [Sequence[Tensor], Sequence[Tensor]], Predictions
]  # last activated features of both towers to predictions


def split_blocks(tower: nn.Module) -> tuple[Block, ...]:
    """A tower of convolution, norm and ReLU layers, nested or flat, cut at each ReLU. Raises ValueError for another activation at the end."""
    blocks: list[list[nn.Module]] = [[]]
    for layer in _leaves(tower):
        if isinstance(layer, nn.ReLU):
            blocks.append([])
        else:
            blocks[-1].append(layer)
    if blocks.pop():
        raise ValueError(f"a tower of ReLU blocks is needed, got {tower}")
    return tuple(blocks)


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    children = list(module.children())
    if not children:
        yield module
    for child in children:
        yield from _leaves(child)


def _climb(
    blocks: Sequence[Block], features: Tensor, start: int, keep: frozenset[int]
) -> tuple[Tensor, dict[int, Tensor]]:
    """Blocks start.. on features that are activated already: the last activated features, and the states before the activation."""
    states = {}
    for depth, block in enumerate(blocks[start:], start + 1):
        for layer in block:
            features = layer(features)
        if depth in keep:
            states[depth] = features
        features = F.relu(features, inplace=depth not in keep)
    return features, states


class TowerPair:
    """Classification and regression tower as blocks; holds no parameters of its own."""

    def __init__(self, classification: nn.Module, regression: nn.Module):
        self.classification, self.regression = split_blocks(classification), split_blocks(regression)
        self.depth = len(self.classification)

    def run(self, levels: Sequence[Tensor], predict: Predict, keep: frozenset[int]) -> tuple[Predictions, Towers]:
        """Both towers on the neck's levels, to the end. keep: depths whose states are wanted, 0 (the neck) to `depth`."""
        ends, towers = self._climb_both(levels, predict, keep, self.depth)
        return predict(*ends), towers

    def states(self, levels: Sequence[Tensor], predict: Predict, keep: frozenset[int]) -> Towers:
        """The wanted states alone: nothing beyond the deepest of them is run."""
        return self._climb_both(levels, predict, keep, max(keep, default=0))[1]

    def _climb_both(
        self, levels: Sequence[Tensor], predict: Predict, keep: frozenset[int], stop: int
    ) -> tuple[tuple[list[Tensor], list[Tensor]], Towers]:
        if not keep <= frozenset(range(self.depth + 1)):
            raise ValueError(f"tower states exist at depths 0 to {self.depth}, asked for {sorted(keep)}")
        classification = [_climb(self.classification[:stop], level, 0, keep) for level in levels]
        regression = [_climb(self.regression[:stop], level, 0, keep) for level in levels]
        states = {0: TowerState(0, tuple(levels), tuple(levels))} if 0 in keep else {}
        for depth in keep - {0}:
            branches = (tuple(kept[depth] for _, kept in branch) for branch in (classification, regression))
            states[depth] = TowerState(depth, *branches)
        ends = ([last for last, _ in classification], [last for last, _ in regression])
        return ends, Towers(states, lambda state: self.resume(state, predict))

    def resume(self, state: TowerState, predict: Predict) -> Predictions:
        """Activation (not at depth 0, the neck has none), the blocks after `state.depth`, the predictors."""
        branches = []
        for blocks, levels in ((self.classification, state.classification), (self.regression, state.regression)):
            entered = [F.relu(level) if state.depth else level for level in levels]
            branches.append([_climb(blocks, level, state.depth, frozenset())[0] for level in entered])
        return predict(*branches)


def flatten_cells(level: Tensor, *shape: int) -> Tensor:
    """(B, A*prod(shape), H, W) to (B, H*W*A, *shape): the order row, column, anchor of `Layout`."""
    values = level.permute(0, 2, 3, 1)
    return values.reshape(len(level), -1, *shape)
