"""The weight of a method during a run: options that every method has besides those of its own `Config`."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from detdistill.types import TrainState


@dataclass(frozen=True)
class Schedule:
    """warmup_steps: number of steps over which the weight rises linearly from 0.
    decay: how the weight falls to 0, which it reaches at `stop`; none: it stays constant.
    stop: share of the run after which the method is inactive and needs no teacher output.
    balance: keeps the gradient of the method's terms at the student's neck near this multiple of the task's gradient;
    none: the weight is constant.
    """

    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay: Literal["none", "linear", "cosine"] = "none"
    stop: Annotated[float, Field(gt=0, le=1)] = 1.0
    balance: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    def inactive(self, state: TrainState) -> bool:
        """True once the method has stopped.

        Raises ValueError if that depends on the length of the run and the state does not hold it.
        """
        if self.stop == 1 and self.decay == "none":
            return False
        if state.steps is None:
            raise ValueError(
                "a weight that decays or stops needs the length of the run: pass state=TrainState(step, steps)"
            )
        return state.progress >= self.stop

    def factor(self, state: TrainState) -> float:
        """The factor of the method's terms, 0..1: min(1, step / warmup_steps) times the decay.

        With x = progress / stop, the decay is 1 - x (linear) or (1 + cos pi x) / 2 (cosine). Raises ValueError as
        `inactive`.
        """
        if self.inactive(state):
            return 0.0
        rise = min(1.0, state.step / self.warmup_steps) if self.warmup_steps else 1.0
        if self.decay == "none":
            return rise
        passed = state.progress / self.stop
        return rise * (1 - passed if self.decay == "linear" else (1 + math.cos(math.pi * passed)) / 2)
