"""A warning if a method moves the student far more, or far less, than the task does in the first steps of a run."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

CHECKED = (20, 30, 40)  # steps, counted from 1; before them, the gradients of a fresh head change too fast
STRONG, WEAK = 10.0, 0.01  # ratios of a method's gradient at the student's neck to the task's


@dataclass
class EffectCheck:
    """Collects the ratios of gradients at a few steps, and judges their medians.

    exempt: names of methods that are not judged, because their weights are balanced.
    ratios: for each method, the ratios measured so far.
    """

    exempt: frozenset[str] = frozenset()
    ratios: dict[str, list[float]] = field(default_factory=dict)

    def looks(self, step: int) -> bool:
        """True if the gradients of this step are to be measured."""
        return step in CHECKED

    def add(self, step: int, ratios: Mapping[str, float]) -> list[str]:
        """Add the ratios of a step, `ratio_<method>` as in `Distillation.ratios`. The last step returns the warnings.

        A run that is resumed after the first of these steps is not judged.
        """
        for name, ratio in ratios.items():
            self.ratios.setdefault(name.removeprefix("ratio_"), []).append(ratio)
        if step != CHECKED[-1]:
            return []
        warnings = []
        for name, values in self.ratios.items():
            if len(values) == len(CHECKED) and name not in self.exempt:
                warnings.append(warning(name, statistics.median(values)))
        return [line for line in warnings if line]


def warning(method: str, ratio: float) -> str:
    """The warning about a method, or an empty text. ratio: of its gradient to the task's."""
    if WEAK <= ratio <= STRONG:
        return ""
    effect = "drowns the task" if ratio > STRONG else "has hardly any effect"
    measured = f"its gradient at the student's neck is {ratio:.2g} times the task's"
    remedy = f"set --methods.{method}.balance 0.5, or change its weights"
    return f"warning: method {method}: {measured}, so it {effect}; {remedy}"
