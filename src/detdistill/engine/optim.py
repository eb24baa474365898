"""Parameter groups, optimizer, learning rate, and the moving average of the weights."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from detdistill.recipe import TrainConfig

Tensors = tuple[Tensor, ...] | list[Tensor]

FUSED = ("cpu", "cuda")  # one kernel per step: equal to the plain loop up to rounding, three times as fast on a CPU


def parameter_groups(distillation: Any, config: TrainConfig) -> list[dict[str, Any]]:
    """The optimizer's non-empty groups: {params, lr, share, weight_decay}.

    Parameters with fewer than two axes (of norms, biases, learned scales) have no weight decay. The backbone learns at
    `backbone_lr_factor` times the rate (`share`); with 0 its parameters are frozen. Parameters that are already frozen
    stay frozen. Connectors of methods learn with the rest.
    """
    backbone: set[Tensor] = set()
    if config.backbone_lr_factor != 1:
        backbone = set(distillation.student.backbone_parameters())
    if config.backbone_lr_factor == 0:
        for parameter in backbone:
            parameter.requires_grad_(False)
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for parameter in distillation.parameters():
        if parameter.requires_grad:
            share = config.backbone_lr_factor if parameter in backbone else 1.0
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((share, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": config.lr * share, "share": share, "weight_decay": decay}
        for (share, decay), parameters in groups.items()
    ]


def build_optimizer(distillation: Any, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over `parameter_groups`. The modules must already be on their device, because the
    fused kernels depend on it.

    Raises ValueError if every parameter is frozen.
    """
    groups = parameter_groups(distillation, config)
    if not groups:
        raise ValueError("nothing to train: every parameter of the student and the methods is frozen")
    fused = groups[0]["params"][0].device.type in FUSED
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=config.lr, fused=fused)


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """The learning rate of step `step` (from 0) in a schedule of `steps` steps.

    The rate rises linearly to `config.lr` over `warmup_steps`. Then it falls to 0 at `steps` as a cosine, is divided by
    10 at every milestone, or is constant. It depends on nothing else, so no state has to be saved.
    """
    if step < config.warmup_steps:
        return config.lr * ((step + 1) / config.warmup_steps)
    if config.schedule == "cosine":
        angle = math.pi * (step - config.warmup_steps) / (steps - config.warmup_steps)
        return config.lr * 0.5 * (1 + math.cos(angle))
    if config.schedule == "step":
        passed = sum(step >= round(milestone * steps) for milestone in config.milestones)
        return config.lr / 10**passed
    return config.lr


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group to its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def moving_average(student: nn.Module, decay: float) -> AveragedModel:
    """A moving average of the student's parameters and norm statistics.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that a short run does not end with its initial
    weights.
    """

    def follow(averages: Tensors, values: Tensors, updates: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # counters, such as the number of batches of a norm
            torch._foreach_copy_(averages, values)
            return
        share = 1 - torch.clamp((1 + torch.as_tensor(updates)) / (10 + torch.as_tensor(updates)), max=decay)
        steps = torch._foreach_sub(values, averages)
        # The share stays a tensor, because reading it as a number would make the host wait for the GPU.
        torch._foreach_mul_(steps, share.to(steps[0].dtype))
        torch._foreach_add_(averages, steps)

    return AveragedModel(student, multi_avg_fn=follow, use_buffers=True).requires_grad_(False)


def rest_frozen(module: nn.Module) -> None:
    """Put every module whose own parameters are all frozen into evaluation mode, so that frozen norms keep their
    statistics.
    """
    for part in module.modules():
        parameters = list(part.parameters(recurse=False))
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            part.training = False  # this module only: its children may train
