"""The two towers of a dense head, run block by block.

A method can take features out of the towers at any depth, and features of another detector can enter them there.
Hooks are not used. torchvision's RetinaNet has an in-place ReLU, which overwrites the output of the convolution before
it, so that a hook would keep the wrong tensor.
"""

from collections.abc import Callable, Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from detdistill.detectors.backbone import group_norm
from detdistill.detectors.convolutions import SeparableConv
from detdistill.recipe import ModelConfig
from detdistill.types import Predictions, Towers, TowerState

Block = Sequence[nn.Module]
"""A convolution and its norm, without the activation."""

Predict = Callable[[Sequence[Tensor], Sequence[Tensor]], Predictions]
"""Turns the last features of both towers into predictions.

Arguments: features (B, C, H, W) per level, fine to coarse, after the last activation; first those of the classification
tower, then those of the regression tower.
"""


def separable_tower(config: ModelConfig) -> nn.Sequential:
    """A tower of separable convolutions, each with group norm and a ReLU. Only norm `none` leaves out the group norm.

    RetinaNet has the group norm too, although its plain towers have none, because all published separable heads have a
    norm.
    """
    norm = None if config.norm == "none" else group_norm
    blocks = [(SeparableConv(config.channels, 1, norm), nn.ReLU()) for _ in range(config.tower_depth)]
    return nn.Sequential(*[layer for block in blocks for layer in block])


def split_blocks(tower: nn.Module) -> tuple[Block, ...]:
    """Cut a tower into one block per ReLU. Each block leaves out its ReLU.

    tower: layers of convolution, norm and ReLU, flat or nested. Raises ValueError if the last layer is not a ReLU.
    """
    blocks: list[list[nn.Module]] = [[]]
    for layer in _leaf_modules(tower):
        if isinstance(layer, nn.ReLU):
            blocks.append([])
        else:
            blocks[-1].append(layer)
    if blocks.pop():
        raise ValueError(f"a tower must consist of blocks that end with a ReLU, got {tower}")
    return tuple(blocks)


def _leaf_modules(module: nn.Module) -> Iterator[nn.Module]:
    children = list(module.children())
    if not children:
        yield module
    for child in children:
        yield from _leaf_modules(child)


def _run_blocks(
    blocks: Sequence[Block], features: Tensor, start: int, keep: frozenset[int]
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run the blocks from `start` on.

    features: the features after the activation of the block before `start`. keep: depths whose features to return.
    Returns the features after the last activation, and by depth the kept features before the activation.
    """
    kept = {}
    for depth, block in enumerate(blocks[start:], start + 1):
        for layer in block:
            features = layer(features)
        if depth in keep:
            kept[depth] = features
        features = F.relu(features, inplace=depth not in keep)
    return features, kept


class TowerPair:
    """The classification tower and the regression tower of a dense head, shared by all levels.

    classification, regression: modules that `split_blocks` can cut, both with the same number of blocks.
    depth: the number of blocks. The pair is not an nn.Module: the head keeps the modules and their parameters.
    """

    def __init__(self, classification: nn.Module, regression: nn.Module):
        self.classification = split_blocks(classification)
        self.regression = split_blocks(regression)
        self.depth = len(self.classification)

    def run(self, levels: Sequence[Tensor], predict: Predict, keep: frozenset[int]) -> tuple[Predictions, Towers]:
        """Run both towers to the end, and predict.

        levels: the neck's maps (B, C, H, W), fine to coarse.
        keep: depths of the states to keep, from 0 (the neck) to `depth`. Raises ValueError for another depth.
        """
        features, towers = self._run_both(levels, predict, keep, self.depth)
        return predict(*features), towers

    def states(self, levels: Sequence[Tensor], predict: Predict, keep: frozenset[int]) -> Towers:
        """Run both towers only to the deepest state of `keep`. The arguments are the same as in `run`."""
        return self._run_both(levels, predict, keep, max(keep, default=0))[1]

    def _run_both(
        self, levels: Sequence[Tensor], predict: Predict, keep: frozenset[int], stop: int
    ) -> tuple[tuple[list[Tensor], list[Tensor]], Towers]:
        """The features of both towers after `stop` blocks, per level, and the kept states."""
        if not keep <= frozenset(range(self.depth + 1)):
            raise ValueError(f"Need.towers {sorted(keep)}: the towers have the depths 0 to {self.depth} only")
        classification = [_run_blocks(self.classification[:stop], level, 0, keep) for level in levels]
        regression = [_run_blocks(self.regression[:stop], level, 0, keep) for level in levels]
        states = {0: TowerState(0, tuple(levels), tuple(levels))} if 0 in keep else {}
        for depth in keep - {0}:
            states[depth] = TowerState(
                depth,
                classification=tuple(kept[depth] for _, kept in classification),
                regression=tuple(kept[depth] for _, kept in regression),
            )
        features = ([last for last, _ in classification], [last for last, _ in regression])
        return features, Towers(states, lambda state: self.resume(state, predict))

    def resume(self, state: TowerState, predict: Predict) -> Predictions:
        """Predict from a tower state: its activation, the blocks after `state.depth`, and the predictors.

        A state of depth 0 holds maps of the neck, which have no activation.
        """
        features = []
        for blocks, levels in ((self.classification, state.classification), (self.regression, state.regression)):
            entered = [F.relu(level) if state.depth else level for level in levels]
            features.append([_run_blocks(blocks, level, state.depth, frozenset())[0] for level in entered])
        return predict(*features)


def flatten_cells(level: Tensor, *shape: int) -> Tensor:
    """Reorder the output of a predictor into one row per prediction, in the order of `Layout`: row, column, anchor.

    level: (B, A * prod(shape), H, W). Returns (B, H * W * A, *shape), or (B, H * W * A) without `shape`.
    """
    values = level.permute(0, 2, 3, 1)  # (B, H, W, A * prod(shape))
    return values.reshape(level.shape[0], -1, *shape)
