"""The towers of dense detectors: states at every depth, kept before the activation, resume to the same predictions."""

import pytest
import torch
from torch import nn

from detdistill.detectors.convolutions import SeparableConv
from detdistill.detectors.towers import TowerPair, flatten_cells, separable_tower, split_blocks
from detdistill.recipe import ModelConfig
from detdistill.types import Need
from tests.detectors.builders import DENSE, scene, shake, tiny

DEPTHS = frozenset({0, 1, 2})


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("head", DENSE)
def test_resume_at_every_depth_equals_the_predictions(head: str, depthwise: bool):
    detector = shake(tiny(head, depthwise=depthwise)).eval()
    batch, _ = scene()
    with torch.no_grad():
        output = detector.observe(batch, need=Need(towers=DEPTHS, predictions=True))
        expected = output.stages[0]
        for depth in DEPTHS:
            resumed = output.towers.resume(output.towers.states[depth])
            torch.testing.assert_close(resumed.logits, expected.logits, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(resumed.boxes, expected.boxes, rtol=1e-5, atol=1e-3)
    assert expected.logits.std() > 1e-3


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("head", DENSE)
def test_states_are_kept_before_the_activation(head: str, depthwise: bool):
    # An in-place ReLU after the convolution would leave no negative value. Hooks on torchvision's RetinaNet see that.
    output = shake(tiny(head, depthwise=depthwise)).eval().observe(scene()[0], need=Need(towers=DEPTHS))
    for depth in (1, 2):
        for level in (*output.towers.states[depth].classification, *output.towers.states[depth].regression):
            assert level.min() < 0


@pytest.mark.parametrize("head", DENSE)
def test_a_separable_state_continues_in_plain_towers_and_back(head: str):
    separable, plain = shake(tiny(head, depthwise=True)).eval(), shake(tiny(head, seed=1)).eval()
    assert separable.info.towers == plain.info.towers
    need = Need(towers=DEPTHS, predictions=True)
    outputs = [detector.observe(scene()[0], need=need) for detector in (separable, plain)]
    for own, other in (outputs, outputs[::-1]):
        for depth in DEPTHS:
            state = own.towers.states[depth]
            logits = other.towers.resume(state).logits
            gradient = torch.autograd.grad(logits.square().sum(), state.classification[0], retain_graph=True)[0]
            assert logits.shape == other.stages[0].logits.shape
            assert gradient.any() and not torch.allclose(logits, other.stages[0].logits)


@pytest.mark.parametrize("norm", ["default", "none"])
def test_the_signal_keeps_its_size_through_a_fresh_separable_tower(norm: str):
    torch.manual_seed(0)
    tower = separable_tower(ModelConfig(channels=64, tower_depth=4, norm=norm))
    with torch.no_grad():
        size = tower(torch.randn(2, 64, 16, 16)).square().mean().sqrt().item()
    assert 0.2 < size < 5


def test_a_block_of_a_separable_tower_is_one_convolution():
    tower = separable_tower(ModelConfig(channels=8, tower_depth=3))
    blocks = split_blocks(tower)
    assert blocks == tuple(list(layer) for layer in tower if isinstance(layer, SeparableConv))
    assert len(blocks) == 3


def test_a_tower_is_cut_at_each_relu_and_must_end_with_one():
    convolution, norm, nested = nn.Conv2d(2, 2, 3, padding=1), nn.GroupNorm(1, 2), nn.Conv2d(2, 2, 3, padding=1)
    tower = nn.Sequential(convolution, norm, nn.ReLU(), nn.Sequential(nested, nn.ReLU()))
    assert split_blocks(tower) == ([convolution, norm], [nested])
    with pytest.raises(ValueError, match="must consist of blocks that end with a ReLU"):
        split_blocks(nn.Sequential(convolution, nn.ReLU(), norm))


def test_a_depth_that_does_not_exist_raises():
    pair = TowerPair(nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU()), nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU()))
    with pytest.raises(ValueError, match=r"Need.towers \[2\]: the towers have the depths 0 to 1 only"):
        pair.states([torch.zeros(1, 2, 4, 4)], lambda *_: None, frozenset({2}))


def test_flattened_cells_are_in_the_order_row_column_anchor():
    # Two anchors of three values each: channels 0..2 belong to anchor 0. The value encodes channel, row and column.
    channel, row, column = torch.meshgrid(torch.arange(6), torch.arange(2), torch.arange(4), indexing="ij")
    level = (100 * channel + 10 * row + column)[None]  # (1, 6, 2, 4)
    values = flatten_cells(level, 3)
    assert values.shape == (1, 2 * 4 * 2, 3)
    assert values[0, (1 * 4 + 2) * 2 + 1].tolist() == [312, 412, 512]  # row 1, column 2, anchor 1
    assert flatten_cells(level[:, :1]).shape == (1, 8)
