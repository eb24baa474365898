"""Groups, schedule and moving average, by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from detdistill.engine.optim import (
    build_optimizer,
    learning_rate,
    moving_average,
    parameter_groups,
    rest_frozen,
    set_learning_rate,
)

from .fakes import Student, config, distillation


def test_groups_by_share_and_decay() -> None:
    whole = distillation()
    groups = parameter_groups(whole, config(lr=0.1, backbone_lr_factor=0.1, weight_decay=0.05))
    found = {
        (group["share"], group["weight_decay"]): {id(parameter) for parameter in group["params"]} for group in groups
    }
    convolution, norm = whole.student.backbone
    connector = whole.methods[0]
    expected = {
        (0.1, 0.05): [convolution.weight],
        (0.1, 0.0): [convolution.bias, norm.weight, norm.bias],
        (1.0, 0.05): [whole.student.head.weight, connector.weight],
        (1.0, 0.0): [whole.student.head.bias, connector.bias],
    }
    assert found == {key: {id(parameter) for parameter in parameters} for key, parameters in expected.items()}
    assert [group["lr"] for group in groups] == pytest.approx([0.1 * group["share"] for group in groups])


def test_factor_zero_freezes_the_backbone_and_its_statistics() -> None:
    whole = distillation()
    groups = parameter_groups(whole, config(backbone_lr_factor=0.0))
    assert not any(parameter.requires_grad for parameter in whole.student.backbone_parameters())
    assert sum(len(group["params"]) for group in groups) == 4  # head and connector
    whole.train()
    rest_frozen(whole)
    norm = whole.student.backbone[1]
    assert not norm.training
    assert whole.student.dropout.training
    assert whole.student.head.training


def test_nothing_to_train_is_said() -> None:
    whole = distillation().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer(whole, config())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_fused_step_is_the_plain_one(name: str) -> None:
    fused, plain = distillation(), distillation()
    settings = config(optimizer=name, lr=0.1)
    optimizer = build_optimizer(fused, settings)
    other = (
        type(optimizer)([{**group, "fused": False} for group in parameter_groups(plain, settings)], momentum=0.9)
        if name == "sgd"
        else None
    )
    other = other or torch.optim.AdamW(parameter_groups(plain, settings), fused=False)
    for step in range(5):
        for one, two in zip(fused.parameters(), plain.parameters(), strict=True):
            one.grad = torch.full_like(one, math.sin(step + 1.0))
            two.grad = one.grad.clone()
        optimizer.step()
        other.step()
    for one, two in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


def test_schedule_values_by_hand() -> None:
    cosine = config(lr=1.0, warmup_steps=4)
    assert [learning_rate(step, 12, cosine) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate(4, 12, cosine) == 1.0
    assert learning_rate(8, 12, cosine) == pytest.approx(0.5)  # half-way from 4 to 12
    assert learning_rate(11, 12, cosine) == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    steps = config(lr=1.0, warmup_steps=0, schedule="step", milestones=(0.5, 0.75))
    assert [learning_rate(step, 8, steps) for step in (3, 4, 5, 6)] == pytest.approx([1.0, 0.1, 0.1, 0.01])
    assert learning_rate(7, 8, config(lr=0.3, warmup_steps=0, schedule="constant")) == 0.3


@given(steps=st.integers(1, 200), warmup=st.integers(0, 300), schedule=st.sampled_from(["cosine", "step", "constant"]))
def test_rate_is_positive_and_at_most_its_peak(steps: int, warmup: int, schedule: str) -> None:
    settings = config(lr=0.2, warmup_steps=warmup, schedule=schedule)
    rates = [learning_rate(step, steps, settings) for step in range(steps)]
    assert all(0 < rate <= 0.2 for rate in rates)
    falling = rates[warmup:]
    assert falling == sorted(falling, reverse=True)


def test_every_group_gets_its_share() -> None:
    optimizer = build_optimizer(distillation(), config(backbone_lr_factor=0.5))
    set_learning_rate(optimizer, 0.2)
    assert {group["share"]: group["lr"] for group in optimizer.param_groups} == {0.5: 0.1, 1.0: 0.2}


def test_moving_average_by_hand() -> None:
    model = nn.BatchNorm1d(1)
    average = moving_average(model, 0.15)
    for value in (1.0, 2.0, 4.0):
        nn.init.constant_(model.weight, value)
        model.running_mean.fill_(10 * value)
        model.num_batches_tracked += 1
        average.update_parameters(model)
    # The first update copies: 1. Then the decay is min(0.15, 2 / 11) = 0.15: 0.15 * 1 + 0.85 * 2 = 1.85; 0.15 * 1.85 + 0.85 * 4 = 3.6775.
    assert average.module.weight.item() == pytest.approx(3.6775)
    assert average.module.running_mean.item() == pytest.approx(36.775)
    assert average.module.num_batches_tracked == 3


def test_moving_average_starts_fast() -> None:
    model = nn.Linear(1, 1)
    average = moving_average(model, 0.999)
    for value in (1.0, 2.0):
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
    assert average.module.weight.item() == pytest.approx(1 + 9 / 11)  # decay (1 + 1) / (10 + 1)


def test_backbone_is_not_asked_for_where_it_learns_like_the_rest() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = nn.Linear(2, 2)

    assert len(parameter_groups(Plain(), config())) == 2
    assert Student().backbone_parameters()
