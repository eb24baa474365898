"""CRD's scores and loss: golden numbers of its memory step, a value by hand, the gradient."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from detdistill.losses import contrast_scores, noise_contrast, unit
from tests.losses.inputs import wave

# The published memory step: 50 vectors of 4 numbers in the bank, 5 negatives.
BANKS = unit(wave((50, 4), 0.31, 0.7)), unit(wave((50, 4), 0.83, 0.2))
VECTORS = unit(wave((2, 4), 0.37, 0.2)), unit(wave((2, 4), 0.53, 0.4))
INDEX = torch.tensor([[3, 10, 20, 30, 40, 49], [7, 1, 2, 4, 5, 6]])


def normalized_scores() -> list[torch.Tensor]:
    """Scores of the vectors of each side against the bank of the other side, divided by the constant Z of that side."""
    raw = [contrast_scores(vectors, bank, INDEX) for vectors, bank in zip(VECTORS, reversed(BANKS), strict=True)]
    constants = [scores.mean() * 50 for scores in raw]
    assert [constant.item() for constant in constants] == pytest.approx(
        [5742986.222444714, 20518012.99047179], rel=1e-6
    )
    return [scores / constant for scores, constant in zip(raw, constants, strict=True)]


def test_golden_memory_step():
    first, second = normalized_scores()
    expected = [3.5478203669064224e-11, 1.766161251732872e-10, 1.1479150999490802e-11, 0.009431924945794756]
    expected += [1.9463789447634837e-05, 0.0458540958494211]
    assert first[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert second[0, 1].item() == pytest.approx(0.07188745567668826, rel=1e-6)
    loss = noise_contrast(first, 50).mean() + noise_contrast(second, 50).mean()
    assert loss.item() == pytest.approx(39.55717298292099, rel=1e-6)


def test_golden_loss():
    scores = wave((3, 6), 0.9, 0.3, 2.0).exp() / 50
    assert noise_contrast(scores, 50).mean().item() == pytest.approx(4.661360639404515, rel=1e-6)


def test_loss_by_hand():
    # Two negatives of a population of four: noise 1/2. The positive 1/2 gives 1/2; the negatives 1/2 and 0 give 1/2
    # and 1.
    scores = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    assert noise_contrast(scores, 4).item() == pytest.approx(2 * math.log(2), rel=1e-5)


def test_equal_scores_give_about_the_log_of_the_number_of_negatives():
    # x = 1/M: K log(1 + 1/K) + log(1 + K), which is about log(1 + K) + 1.
    scores = torch.full((2, 4097), 1 / 32768, dtype=torch.float64)
    assert noise_contrast(scores, 32768).tolist() == pytest.approx([math.log(4097) + 1] * 2, rel=1e-3)


def test_the_gradient_flows_to_the_vectors_only():
    bank = BANKS[0].clone().requires_grad_()
    vectors = VECTORS[0].clone().requires_grad_()
    assert gradcheck(lambda v: noise_contrast(contrast_scores(v, bank.detach(), INDEX, 0.7), 50), vectors)
    contrast_scores(vectors, bank, INDEX).sum().backward()
    assert bank.grad is None and vectors.grad is not None
