"""Precision, shape checks and normalizers that the losses share."""

import pytest
import torch

from detdistill.distributed import mean_over_processes
from detdistill.losses import weighted_mean
from detdistill.losses.reduce import at_least_single, check_same_shape


def test_a_normalizer_is_at_least_one():
    assert mean_over_processes(torch.tensor(0.0)).item() == 1
    assert mean_over_processes(torch.tensor(7.0)).item() == 7


def test_weighted_mean_by_hand():
    # (1/4 * 2 + 3/4 * 4) / 1 = 3.5. The sum of weights may be below 1.
    values, weights = torch.tensor([2.0, 4.0]), torch.tensor([0.25, 0.75])
    assert weighted_mean(values, weights).item() == 3.5
    assert weighted_mean(values, weights / 100).item() == pytest.approx(3.5)
    assert weighted_mean(values, weights * 0).item() == 0


def test_only_half_precision_is_converted():
    kinds = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float32}
    for kind, expected in (kinds | {torch.float64: torch.float64}).items():
        assert at_least_single(torch.zeros(1, dtype=kind)).dtype == expected


def test_maps_of_different_shapes_are_refused():
    check_same_shape(torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1))
    with pytest.raises(ValueError, match=r"must be maps of one shape, got \(1, 2, 1, 1\) and \(1, 2, 2, 3\)"):
        check_same_shape(torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 2, 3))
