"""The trial step of `--batch-size auto`, on the CPU: its batch, its answer, and that it leaves no trace."""

from typing import Any

import pytest
import torch

from detdistill.data import open_data
from detdistill.engine.distillation import Distillation
from detdistill.engine.memory import crowded_batch, kept_bytes, step_fits
from detdistill.recipe import DataConfig
from detdistill.types import Targets
from tests.detectors.builders import tiny

from .fakes import Match, assert_identical, fake_distillation, small_detector, train_config

GIGABYTE = 2**30


def test_the_trial_batch_is_the_largest_and_has_the_most_objects() -> None:
    config = DataConfig(path="shapes:12", image_size=(60, 80), multiscale=(0.5, 1.5))
    records = open_data(config).split("train").records
    batch, targets = crowded_batch(records, config, 3)
    assert batch.images.shape == (3, 3, 96, 128)
    counts = sorted((len(record.labels) for record in records), reverse=True)
    assert [len(labels) for labels in targets.labels] == counts[:3]
    assert all((boxes[:, 2] <= 128.01).all() and (boxes[:, 3] <= 96.01).all() for boxes in targets.boxes)
    plain, _ = crowded_batch(records, DataConfig(image_size=(60, 80)), 1)
    assert plain.images.shape == (1, 3, 64, 96)  # padded to multiples of 32


def test_a_step_fits_if_there_is_enough_memory_and_leaves_no_trace() -> None:
    config = DataConfig(path="shapes:12", image_size=64)
    batch, targets = crowded_batch(open_data(config).split("train").records, config, 2)
    targets = Targets(targets.boxes, tuple(labels % 3 for labels in targets.labels))  # of the three classes
    student: Any = tiny("gfl")
    distillation = Distillation(student)
    before = {name: value.clone() for name, value in distillation.state_dict().items()}
    assert step_fits(distillation, None, batch, targets, train_config(), 1000 * GIGABYTE)
    assert not step_fits(distillation, None, batch, targets, train_config(), 2**20)
    assert_identical(dict(distillation.state_dict()), before)
    assert all(parameter.grad is None for parameter in distillation.parameters())


def test_a_step_that_runs_out_of_memory_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(path="shapes:12", image_size=64)
    batch, targets = crowded_batch(open_data(config).split("train").records, config, 2)

    def run_out(*arguments: Any, **keywords: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    distillation = Distillation(small_detector(), [Match()])
    monkeypatch.setattr(distillation, "forward", run_out)
    assert not step_fits(distillation, small_detector(1), batch, targets, train_config(), 1000 * GIGABYTE)


def test_what_the_optimizer_keeps_is_counted() -> None:
    distillation = fake_distillation()
    weights = sum(parameter.numel() for parameter in distillation.parameters())
    assert kept_bytes(distillation, train_config(ema=None)) == 2 * 4 * weights
    assert kept_bytes(distillation, train_config(ema=0.9)) == 3 * 4 * weights
    assert kept_bytes(distillation, train_config(ema=None, optimizer="sgd")) == 4 * weights
    distillation.student.backbone.requires_grad_(False)
    head = 4 * 2 + 2 + 2 * 2 + 2
    assert kept_bytes(distillation, train_config(ema=None, optimizer="sgd")) == 4 * head
