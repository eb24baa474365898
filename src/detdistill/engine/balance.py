"""Balances a method's weight, so that its gradient at the student's neck stays in a fixed proportion to the task's."""

import math

import torch
from torch import Tensor, nn

from detdistill.errors import UserError

SMOOTHING = 0.5  # exponent of the correction: each update makes half of the correction, in logarithms
PATIENCE = 20  # measurements without a gradient, on batches with objects, after which the run stops
STEP = 2.0  # largest change of the factor in one update, up or down
RANGE = 1e4  # the factor stays within 1/RANGE and RANGE; PKD with an untrained GFL head needs 1/4000 at first


class Balance(nn.Module):
    """The factor f by which a method's terms are multiplied, in addition to its weight and schedule.

    Each measurement of the gradients at the neck updates the factor:

        f <- clip(f * clip((target / r)^(1/2), 1/2, 2), 1/10000, 10000),    r = f |g_method| / |g_task|

    This is a geometric moving average of the factor that would reach the target. The first successful measurement
    corrects f completely (within the outer bounds), because a wrong weight can be wrong by powers of ten and there are
    no earlier measurements to average. Every step tries to measure until one measurement succeeds: the first batch may
    be empty, or overflow under fp16.

    The factor is a buffer, so it is part of the checkpoint. The idea is from the gradient-guided modulation of
    RT-DETRv4 (arXiv:2510.25257). Once per epoch, RT-DETRv4 changes the weight until one module of the encoder has a
    given share of all gradients. Its released code does this on the main process only. The ratio measured here depends
    on no module name and is the same on every process.
    """

    factor: Tensor
    measurements: Tensor
    missed: Tensor

    def __init__(self, method: str, target: float):
        super().__init__()
        self.method, self.target = method, target
        self.register_buffer("factor", torch.ones(()))
        self.register_buffer("measurements", torch.zeros((), dtype=torch.long))
        # Measurements that found no gradient, on batches with objects. A buffer, so that micro-batches can restore it.
        self.register_buffer("missed", torch.zeros((), dtype=torch.long), persistent=False)
        self.begun = False  # copy of `measurements > 0` on the CPU: reading the buffer makes the host wait for the GPU

    @torch.no_grad()
    def update(self, method: float, task: float, objects: bool) -> None:
        """Update the factor from gradient norms at the neck: of the method's terms without the factor, and of the task.

        The factor does not change if a norm is 0, infinite or NaN (empty batch, fp16 overflow). objects: True if the
        batch has at least one object. Raises UserError if the method gave the neck no gradient in PATIENCE
        measurements. One batch is not enough: it may have objects but no positive on the method's levels, or fewer than
        two instances.
        """
        first = self.waiting()
        if method == 0 and first and objects:
            self.missed += 1
        if first and self.missed.item() >= PATIENCE:
            raise UserError(
                f"method {self.method}: its terms give the student's neck no gradient, so its weight can't be "
                "balanced; "
                f"leave out methods.{self.method}.balance, or check its weights"
            )
        if not (0 < method < math.inf and 0 < task < math.inf):
            return
        self.factor.fill_(steered(self.factor.item(), method / task, self.target, first))
        self.measurements += 1

    def waiting(self) -> bool:
        """True until the first successful measurement, here or before a resumption."""
        self.begun = self.begun or self.measurements.item() > 0
        return not self.begun


def steered(factor: float, ratio: float, target: float, first: bool = False) -> float:
    """The next factor; see `Balance`. ratio: of the gradient norms, without the factor."""
    correction = target / (factor * ratio)
    step = correction if first else min(max(correction**SMOOTHING, 1 / STEP), STEP)
    return min(max(factor * step, 1 / RANGE), RANGE)
