"""How much a method weighs as a run goes on: options that every method has, beside those of its own `Config`."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from detdistill.types import TrainState


@dataclass(frozen=True)
class Schedule:
    """warmup_steps: steps over which the weight rises linearly from 0. decay: the weight's way to 0, which it reaches at `stop`; none: it stays.
    stop: share of the run after which the method is silent, and the teacher no longer asked for it. balance: the gradient of the method's terms
    at the student's neck is kept near this many times that of the task's; none: the weight is what the options say."""

    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay: Literal["none", "linear", "cosine"] = "none"
    stop: Annotated[float, Field(gt=0, le=1)] = 1.0
    balance: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    def inactive(self, state: TrainState) -> bool:
        """Nothing is computed from here on. Raises ValueError where the run's length decides and the state doesn't tell it."""
        if self.stop == 1 and self.decay == "none":
            return False
        if state.steps is None:
            raise ValueError(
                "a weight that decays or stops needs to know how long the run is: call with state=TrainState(step, steps)"
            )
        return state.progress >= self.stop

    def factor(self, state: TrainState) -> float:
        """What the method's terms are multiplied by, 0..1: min(1, step / warmup_steps) times, with x = progress / stop, 1 - x or
        (1 + cos pi x) / 2. Raises ValueError as `inactive`."""
        if self.inactive(state):
            return 0.0
        rise = min(1.0, state.step / self.warmup_steps) if self.warmup_steps else 1.0
        if self.decay == "none":
            return rise
        passed = state.progress / self.stop
        return rise * (1 - passed if self.decay == "linear" else (1 + math.cos(math.pi * passed)) / 2)
