"""A controller of a method's weight: the student's neck feels the teacher in a fixed proportion to the labels."""

import math

import torch
from torch import Tensor, nn

from detdistill.errors import UserError

SMOOTHING = 0.5  # power of the correction: half the way, in logarithms
PATIENCE = 20  # measurements without a gradient, on batches with objects, after which none is expected
STEP = 2.0  # the factor moves at most this much at once, up or down
RANGE = 1e4  # and is at most this far from 1; PKD against a fresh GFL head needs 1/4000 at first


class Balance(nn.Module):
    """The factor f of a method's terms, beside its weight and its schedule; a buffer, so that it is in the checkpoint. With every measurement of
    the gradients at the neck

        f <- clip(f * clip((target / r)^(1/2), 1/2, 2), 1/10000, 10000),    r = f |g_method| / |g_task|

    a geometric moving average of the factor that would meet the target, bounded at once and as a whole. The first measurement goes the
    whole way, within these bounds: a wrong reduction is wrong by powers of ten, and there is nothing yet to average. It is tried for at every
    step until it succeeds: a first batch may be empty, or overflow under fp16.

    The idea is the gradient-guided modulation of RT-DETRv4 (arXiv:2510.25257), which once an epoch moves the weight until a module of the encoder
    has a given share of all gradients, in the released code on the main process alone. What is measured here, the ratio, hangs on no name
    of a module, and is the same on every process.
    """

    factor: Tensor
    measurements: Tensor

    def __init__(self, method: str, target: float):
        super().__init__()
        self.method, self.target = method, target
        self.register_buffer("factor", torch.ones(()))
        self.register_buffer("measurements", torch.zeros((), dtype=torch.long))
        self.missed = 0  # measurements that found no gradient, on batches with objects
        self.begun = False  # measurements > 0, on the CPU: looking at the buffer makes the host wait for a GPU

    @torch.no_grad()
    def update(self, method: float, task: float, objects: bool) -> None:
        """method, task: gradient norms at the neck, the method's without the factor. Where one is 0, infinite or NaN (an empty batch, fp16's
        overflow) the factor stays. objects: there is one in the batch. Raises UserError where the method has not reached the neck in PATIENCE
        measurements: a single batch may have objects, and yet no positive on the method's levels or no two instances to relate."""
        first = self.waiting()
        self.missed += method == 0 and first and objects
        if self.missed >= PATIENCE:
            raise UserError(
                f"method {self.method}: its terms give the student's neck no gradient, so there is nothing to balance; "
                f"leave out methods.{self.method}.balance, or look at its weights"
            )
        if not (0 < method < math.inf and 0 < task < math.inf):
            return
        self.factor.fill_(steered(self.factor.item(), method / task, self.target, first))
        self.measurements += 1

    def waiting(self) -> bool:
        """Nothing has been measured yet, here or before a resumption."""
        self.begun = self.begun or self.measurements.item() > 0
        return not self.begun


def steered(factor: float, ratio: float, target: float, first: bool = False) -> float:
    """The next factor. ratio: of the gradients, without the factor. See `Balance`."""
    wanted = target / (factor * ratio)
    step = wanted if first else min(max(wanted**SMOOTHING, 1 / STEP), STEP)
    return min(max(factor * step, 1 / RANGE), RANGE)
