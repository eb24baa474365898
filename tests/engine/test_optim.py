"""Parameter groups, learning rates and the moving average, compared with values by hand."""

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

from .fakes import fake_distillation, train_config


def test_groups_differ_by_share_and_weight_decay() -> None:
    distillation = fake_distillation()
    groups = parameter_groups(distillation, train_config(lr=0.1, backbone_lr_factor=0.1, weight_decay=0.05))
    ids = {
        (group["share"], group["weight_decay"]): {id(parameter) for parameter in group["params"]} for group in groups
    }
    convolution, norm = distillation.student.backbone
    head = distillation.student.head
    connector = distillation.methods[0]
    expected = {
        (0.1, 0.05): [convolution.weight],
        (0.1, 0.0): [convolution.bias, norm.weight, norm.bias],
        (1.0, 0.05): [head.weight, connector.weight],
        (1.0, 0.0): [head.bias, connector.bias],
    }
    assert ids == {key: {id(parameter) for parameter in parameters} for key, parameters in expected.items()}
    assert [group["lr"] for group in groups] == pytest.approx([0.1 * group["share"] for group in groups])


def test_factor_zero_freezes_the_backbone_and_its_statistics() -> None:
    distillation = fake_distillation()
    groups = parameter_groups(distillation, train_config(backbone_lr_factor=0.0))
    student = distillation.student
    assert not any(parameter.requires_grad for parameter in student.backbone_parameters())
    assert sum(len(group["params"]) for group in groups) == 4  # head and connector
    distillation.train()
    rest_frozen(distillation)
    norm = student.backbone[1]
    assert not norm.training
    assert student.dropout.training
    assert student.head.training


def test_with_factor_one_backbone_parameters_is_not_called() -> None:
    class WithoutBackbone(nn.Module):
        """A distillation whose student has no `backbone_parameters`."""

        def __init__(self) -> None:
            super().__init__()
            self.student = nn.Linear(2, 2)

    assert len(parameter_groups(WithoutBackbone(), train_config())) == 2
    assert fake_distillation().student.backbone_parameters()


def test_a_distillation_without_trainable_parameters_is_refused() -> None:
    distillation = fake_distillation().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer(distillation, train_config())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_fused_optimizer_equals_the_plain_one(name: str) -> None:
    fused_model, plain_model = fake_distillation(), fake_distillation()
    config = train_config(optimizer=name, lr=0.1)
    fused = build_optimizer(fused_model, config)
    groups = parameter_groups(plain_model, config)
    plain: torch.optim.Optimizer
    if name == "sgd":
        plain = torch.optim.SGD([{**group, "fused": False} for group in groups], momentum=0.9)
    else:
        plain = torch.optim.AdamW(groups, fused=False)
    assert type(fused) is type(plain)
    for step in range(5):
        for fused_parameter, plain_parameter in zip(fused_model.parameters(), plain_model.parameters(), strict=True):
            fused_parameter.grad = torch.full_like(fused_parameter, math.sin(step + 1.0))
            plain_parameter.grad = fused_parameter.grad.clone()
        fused.step()
        plain.step()
    for fused_parameter, plain_parameter in zip(fused_model.parameters(), plain_model.parameters(), strict=True):
        torch.testing.assert_close(fused_parameter, plain_parameter, rtol=1e-6, atol=1e-7)


def test_learning_rates_equal_values_by_hand() -> None:
    cosine = train_config(lr=1.0, warmup_steps=4)
    assert [learning_rate(step, 12, cosine) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate(4, 12, cosine) == 1.0
    assert learning_rate(8, 12, cosine) == pytest.approx(0.5)  # half-way from 4 to 12
    assert learning_rate(11, 12, cosine) == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    steps = train_config(lr=1.0, warmup_steps=0, schedule="step", milestones=(0.5, 0.75))
    assert [learning_rate(step, 8, steps) for step in (3, 4, 5, 6)] == pytest.approx([1.0, 0.1, 0.1, 0.01])
    assert learning_rate(7, 8, train_config(lr=0.3, warmup_steps=0, schedule="constant")) == 0.3


@given(steps=st.integers(1, 200), warmup=st.integers(0, 300), schedule=st.sampled_from(["cosine", "step", "constant"]))
def test_the_learning_rate_is_positive_and_at_most_its_peak(steps: int, warmup: int, schedule: str) -> None:
    config = train_config(lr=0.2, warmup_steps=warmup, schedule=schedule)
    rates = [learning_rate(step, steps, config) for step in range(steps)]
    assert all(0 < rate <= 0.2 for rate in rates)
    after_warmup = rates[warmup:]
    assert after_warmup == sorted(after_warmup, reverse=True)


def test_every_group_gets_its_share_of_the_rate() -> None:
    optimizer = build_optimizer(fake_distillation(), train_config(backbone_lr_factor=0.5))
    set_learning_rate(optimizer, 0.2)
    assert {group["share"]: group["lr"] for group in optimizer.param_groups} == {0.5: 0.1, 1.0: 0.2}


def test_the_moving_average_equals_values_by_hand() -> None:
    model = nn.BatchNorm1d(1)
    average = moving_average(model, 0.15)
    for value in (1.0, 2.0, 4.0):
        nn.init.constant_(model.weight, value)
        model.running_mean.fill_(10 * value)
        model.num_batches_tracked += 1
        average.update_parameters(model)
    # The first update copies the weight: 1. Then the decay is min(0.15, 2 / 11) = 0.15:
    # 0.15 * 1 + 0.85 * 2 = 1.85, and 0.15 * 1.85 + 0.85 * 4 = 3.6775.
    assert average.module.weight.item() == pytest.approx(3.6775)
    assert average.module.running_mean.item() == pytest.approx(36.775)
    assert average.module.num_batches_tracked == 3


def test_the_decay_of_the_moving_average_starts_small() -> None:
    model = nn.Linear(1, 1)
    average = moving_average(model, 0.999)
    for value in (1.0, 2.0):
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
    assert average.module.weight.item() == pytest.approx(1 + 9 / 11)  # decay (1 + 1) / (10 + 1)
