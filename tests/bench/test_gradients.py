"""`bench/gradients.py` measures the ratio that a run logs, and makes a table of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import detdistill as dd


@pytest.fixture
def gradients(bench: Callable[[str], Any]) -> Any:
    """The module `gradients`."""
    return bench("gradients")


def test_the_table_has_the_change_from_the_first_to_the_last_size(gradients: Any) -> None:
    rows = [{"method": "pkd", "96": 4.0, "320": 2.0}, {"method": "kd", "96": None, "320": None}]
    assert gradients.table(rows, [96, 320]).splitlines()[2:] == ["| `pkd` | 4 | 2 | 0.5 |", "| `kd` | - | - | - |"]


def test_images_of_one_batch_have_the_chosen_size_at_every_size(gradients: Any) -> None:
    small, large = (gradients.batches("shapes:16", size, 3) for size in (64, 128))
    assert [batch.ids.tolist() for batch, _ in small] == [batch.ids.tolist() for batch, _ in large]
    assert len(small) == 3  # an epoch has two batches
    assert small[0][0].images.shape[-1] == 64


def test_a_ratio_doubles_with_the_weight(gradients: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    shape = {"strides": (8, 16, 32), "channels": 32, "tower_depth": 1, "backbone_weights": "none"}
    teacher = dd.build("gfl:mobilenetv3_small_050", tuple("abcdef"), **shape).eval()
    found = gradients.batches("shapes:8", 64, 1)
    student = gradients.plain_student("gfl:mobilenetv3_small_050", teacher, found)
    once = gradients.ratio(student, teacher, "pkd", found)
    plain = gradients.pair
    monkeypatch.setattr(gradients, "pair", lambda s, t, method: plain(s, t, {method: {"weight": 20.0}}))
    assert gradients.ratio(student, teacher, "pkd", found) == pytest.approx(2 * once, rel=1e-3)
    assert gradients.ratio(student, teacher, "kd", found) is None  # needs RoI heads
