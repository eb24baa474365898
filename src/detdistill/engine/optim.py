"""Which parameters learn, how fast, and their moving average."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from detdistill.recipe import TrainConfig

Tensors = tuple[Tensor, ...] | list[Tensor]

FUSED = ("cpu", "cuda")  # one kernel a step: within one rounding of the plain loop, and three times as fast on a CPU


def parameter_groups(distillation: Any, config: TrainConfig) -> list[dict[str, Any]]:
    """The optimizer's groups, empty ones left out: {params, lr, share, weight_decay}.

    Parameters with fewer than two axes (those of norms, biases, learned scales) do not decay. The backbone's learn at `backbone_lr_factor`
    of the rate (`share`); at 0 they stop asking for gradients. What is frozen already stays so. Methods' connectors learn with the rest.
    """
    slow: set[Tensor] = set()
    if config.backbone_lr_factor != 1:
        slow = set(distillation.student.backbone_parameters())
    if config.backbone_lr_factor == 0:
        for parameter in slow:
            parameter.requires_grad_(False)
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for parameter in distillation.parameters():
        if parameter.requires_grad:
            share = config.backbone_lr_factor if parameter in slow else 1.0
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((share, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": config.lr * share, "share": share, "weight_decay": decay}
        for (share, decay), parameters in groups.items()
    ]


def build_optimizer(distillation: Any, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over `parameter_groups`. The modules are on their device already: the fused kernels depend on it."""
    groups = parameter_groups(distillation, config)
    if not groups:
        raise ValueError("nothing to train: every parameter of the student and the methods is frozen")
    fused = groups[0]["params"][0].device.type in FUSED
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=config.lr, fused=fused)


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """The rate of step `step` (from 0) in a schedule of `steps`; a function of nothing else, so that there is no state to save.

    Linear warm-up to `config.lr` over `warmup_steps`; then cosine towards 0 at `steps`, or a tenth at every milestone, or constant.
    """
    if step < config.warmup_steps:
        return config.lr * ((step + 1) / config.warmup_steps)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * (step - config.warmup_steps) / (steps - config.warmup_steps)))
    if config.schedule == "step":
        passed = sum(step >= round(milestone * steps) for milestone in config.milestones)
        return config.lr / 10**passed
    return config.lr


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Every group learns at its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def moving_average(student: nn.Module, decay: float) -> AveragedModel:
    """A copy of the student that follows it: parameters and norm statistics alike, since statistics of other weights do not fit.

    Over n updates the decay is min(decay, (1 + n) / (10 + n)): a short run would otherwise be left with its initial weights.
    """

    def follow(averages: Tensors, values: Tensors, updates: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # counters, such as a norm's number of batches
            torch._foreach_copy_(averages, values)
            return
        share = 1 - torch.clamp((1 + torch.as_tensor(updates)) / (10 + torch.as_tensor(updates)), max=decay)
        steps = torch._foreach_sub(values, averages)
        torch._foreach_mul_(
            steps, share.to(steps[0].dtype)
        )  # a tensor, not a number: reading it would make the device wait
        torch._foreach_add_(averages, steps)

    return AveragedModel(student, multi_avg_fn=follow, use_buffers=True).requires_grad_(False)


def rest_frozen(module: nn.Module) -> None:
    """Put every module whose own parameters are all frozen into evaluation mode, so that a frozen norm's statistics stay as they are."""
    for part in module.modules():
        own = list(part.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            part.training = False  # of itself alone: below it, others may train
