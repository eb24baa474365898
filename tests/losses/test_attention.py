"""Distances with attention, masks and confidence: golden numbers, values by hand, minima and gradients."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from detdistill.geometry import focal_masks
from detdistill.losses import (
    attention_distance,
    attentions,
    channel_wise,
    focal_distance,
    masked_generation,
    squared_distance,
    weighted_entropy,
    weighted_square,
)
from tests.losses.inputs import wave
from tests.losses.test_features import STUDENT, TEACHER

BOXES = [torch.tensor([[5.0, 7, 30, 40], [10, 3, 60, 20]]).double(), torch.tensor([[0.0, 0, 15, 15]]).double()]
SIZES = torch.tensor([[48, 64], [48, 64]])
SMALL = wave((2, 3, 2, 3), 0.7, 0.1, 2.0), wave((2, 3, 2, 3), 1.1, 0.4, 2.0)
GOLDEN = partial(pytest.approx, rel=1e-6)


@pytest.mark.parametrize(("temperature", "value"), [(1.0, 1.4014005102820457), (4.0, 1.962397707371631)])
def test_channel_wise_golden(temperature: float, value: float):
    assert channel_wise(STUDENT, TEACHER, temperature).item() == GOLDEN(value)


def test_the_cross_entropy_form_has_the_same_gradient_and_the_entropy_as_minimum():
    assert channel_wise(STUDENT, TEACHER, cross_entropy=True).item() == GOLDEN(4.707968934947826)  # from the formula
    student = STUDENT.clone().requires_grad_()
    (divergence_gradient,) = torch.autograd.grad(channel_wise(student, TEACHER, 2.0, False), student)
    (entropy_gradient,) = torch.autograd.grad(channel_wise(student, TEACHER, 2.0, True), student)
    torch.testing.assert_close(divergence_gradient, entropy_gradient)
    entropy = torch.distributions.Categorical(logits=TEACHER.flatten(2)).entropy().mean()
    torch.testing.assert_close(channel_wise(TEACHER, TEACHER, 1.0, True), entropy)
    assert channel_wise(TEACHER, TEACHER, 4.0).abs() < 1e-12


def test_channel_wise_by_hand_and_on_a_larger_map():
    # One channel of two cells: teacher (1/2, 1/2), student (1/4, 3/4): KL = 1/2 ln 2 + 1/2 ln(2/3) = 1/2 ln(4/3).
    teacher = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    student = torch.tensor([0.0, math.log(3)], dtype=torch.float64).view(1, 1, 1, 2)
    assert channel_wise(student, teacher, 1.0).item() == pytest.approx(math.log(4 / 3) / 2)
    # The result is a mean over images and channels. A map with every cell twice has the same divergence.
    wider = [torch.cat([side, side], dim=3) for side in (student, teacher)]
    assert channel_wise(*wider, 1.0).item() == pytest.approx(math.log(4 / 3) / 2)
    deeper = [torch.cat([side, side], dim=1) for side in (student, teacher)]
    assert channel_wise(*deeper, 1.0).item() == pytest.approx(math.log(4 / 3) / 2)


def test_attentions_golden_and_mean_of_one():
    spatial, channel = attentions(TEACHER, 0.5)
    assert spatial[0, 0, :3].tolist() == GOLDEN([0.9360850169733743, 2.1887898773886656, 1.850789411840662])
    assert channel[0].tolist() == GOLDEN(
        [0.9715141543431238, 1.0112080049014591, 1.0084592683209772, 1.0088185724344405]
    )
    torch.testing.assert_close(spatial.mean((1, 2)), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(channel.mean(1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("temperature", "parts"),
    [
        (0.5, (25.412241309460793, 17.631475431283036, 35.329087570700295)),
        (0.8, (23.76848590838384, 16.43102283432067, 24.483322971085062)),
    ],
)
@pytest.mark.parametrize("stretched", [False, True])  # both are equal without padding
def test_focal_parts_golden(temperature: float, parts: tuple[float, ...], stretched: bool):
    regions = torch.stack(focal_masks(BOXES, (6, 8), 8, SIZES, stretched))
    foreground, background = focal_distance(STUDENT, TEACHER, regions, temperature).tolist()
    assert (foreground, background) == GOLDEN(parts[:2])
    assert attention_distance(STUDENT, TEACHER, temperature).item() == GOLDEN(parts[2])


def test_squared_distance_golden():
    assert squared_distance(STUDENT, TEACHER).item() == GOLDEN(781.326001709885)


def generator() -> nn.Sequential:
    """MGD's generation block with the weights of the golden numbers."""
    layers = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)).double()
    waves = [
        ((4, 4, 3, 3), 0.61, 0.3, 0.3),
        ((4,), 0.9, 0.1, 0.1),
        ((4, 4, 3, 3), 0.47, 0.9, 0.3),
        ((4,), 0.5, 0.6, 0.1),
    ]
    with torch.no_grad():
        for parameter, shape in zip(layers.parameters(), waves, strict=True):
            parameter.copy_(wave(*shape))
    return layers


def test_masked_generation_golden():
    assert masked_generation(STUDENT, TEACHER, generator()).item() == GOLDEN(1599.648154085441)
    mask = (wave((2, 1, 6, 8), 1.7, 0.2) < 0.3).double()
    assert mask.sum() == 58
    masked = masked_generation(STUDENT, TEACHER, generator(), mask)
    assert masked.item() == GOLDEN(955.7226239226925)  # from the formula


def test_weighted_distances_by_hand():
    # Two cells, two channels: squared differences 1 + 4 and 9 + 0; weights 1/4 and 3/4: (5/4 + 27/4) / 1 = 8.
    student = torch.tensor([1.0, 3, 2, 0]).view(1, 2, 1, 2)
    zero = torch.zeros_like(student)
    weights = torch.tensor([0.25, 0.75]).view(1, 1, 2)
    assert weighted_square(student, zero, weights).item() == 8
    assert weighted_square(student, zero, weights / 100).item() == pytest.approx(8)  # the sum of weights may be below 1
    assert weighted_square(student, zero, weights * 0).item() == 0
    # A logit of 0 has the entropy ln 2 for every target. Two of them per cell: 2 ln 2 per cell, and so on average.
    logits = torch.zeros(1, 1, 2, 2)
    assert weighted_entropy(logits, logits + 3, weights).item() == pytest.approx(2 * math.log(2))


CONFIDENCE = wave((2, 2, 3), 0.9, 0.3).square()
REGIONS = torch.stack([CONFIDENCE, 1 - CONFIDENCE])
DISTANCES = {
    "channel_wise": lambda s, t: channel_wise(s, t, 2.0),
    "cross_entropy": lambda s, t: channel_wise(s, t, 2.0, cross_entropy=True),
    "focal": lambda s, t: focal_distance(s, t, REGIONS.to(s.dtype), 0.5).sum(),
    "attention": lambda s, t: attention_distance(s, t, 0.5),
    "generation": lambda s, t: masked_generation(s, t, torch.sin, CONFIDENCE[:, None].to(s.dtype)),
    "square": lambda s, t: weighted_square(s, t, CONFIDENCE.to(s.dtype)),
    "entropy": lambda s, t: weighted_entropy(s.permute(0, 2, 3, 1), t.permute(0, 2, 3, 1), CONFIDENCE.to(s.dtype)),
}


@pytest.mark.parametrize("name", DISTANCES)
def test_gradients_are_right_and_do_not_reach_the_teacher(name: str):
    student, teacher = (features.clone().requires_grad_() for features in SMALL)
    assert gradcheck(lambda s: DISTANCES[name](s, SMALL[1]), student)
    DISTANCES[name](student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["channel_wise", "focal", "attention", "square"])
def test_equal_maps_have_no_distance(name: str):
    assert DISTANCES[name](SMALL[0], SMALL[0]).abs() < 1e-12


@pytest.mark.parametrize("name", DISTANCES)
def test_a_repeated_batch_gives_the_same_value(name: str, monkeypatch: pytest.MonkeyPatch):
    once = DISTANCES[name](*SMALL)
    monkeypatch.setitem(globals(), "CONFIDENCE", CONFIDENCE.repeat(2, 1, 1))
    monkeypatch.setitem(globals(), "REGIONS", REGIONS.repeat(1, 2, 1, 1))
    torch.testing.assert_close(DISTANCES[name](*(features.repeat(2, 1, 1, 1) for features in SMALL)), once)


@pytest.mark.parametrize("name", [name for name in DISTANCES if name != "generation"])
def test_half_precision_is_summed_in_single(name: str):
    term = DISTANCES[name](*(100 * features.half() for features in SMALL))
    assert term.isfinite()
    assert term.dtype == torch.float32


def test_channel_wise_broadcasts_nothing():
    # A level of one cell and a level of six cells: grids that differ by rounding must not give a number.
    with pytest.raises(ValueError, match=r"must be maps of one shape, got \(1, 2, 1, 1\) and \(1, 2, 2, 3\)"):
        channel_wise(torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 2, 3))
