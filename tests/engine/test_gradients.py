"""Norms of gradients at the neck."""

import math

import pytest
import torch

from detdistill.engine.gradients import neck_norms, shares


def test_norms_equal_values_by_hand_and_do_not_depend_on_the_loss_scale() -> None:
    features = torch.zeros(1, 1, 2, 2, requires_grad=True)
    fine = features + 1
    coarse = features[..., :1, :1] + 2
    parts = {"both": 3 * fine.sum() + 8 * coarse.sum(), "constant": torch.ones(()), "beside": features.sum()}
    norms = neck_norms(parts, (fine, coarse))
    assert norms == {"both": pytest.approx(10.0), "constant": 0.0, "beside": 0.0}  # sqrt(4 * 9 + 64)

    class Scaler:
        def scale(self, value: torch.Tensor) -> torch.Tensor:
            return value * 2.0**16

    assert neck_norms(parts, (fine, coarse), Scaler()) == norms
    parts["both"].backward()  # the graph was kept
    assert features.grad is not None


def test_shares_sum_to_one_and_are_zero_without_a_gradient() -> None:
    assert shares({"a": 3.0, "b": 1.0}) == {"a": 0.75, "b": 0.25}
    assert shares({"a": 0.0}) == {"a": 0.0}
    assert math.isnan(shares({"a": math.inf, "b": 1.0})["a"])  # the log writes null
