"""Shows the log of a run in TensorBoard, Weights & Biases or MLflow, through the trackers of accelerate."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker

from detdistill.errors import UserError, one_line
from detdistill.files import write_json

PROJECT = "detdistill"  # name of the project or experiment, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME is set
FINAL = "metrics"  # the part of the metrics at the end of a run
MODULES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "mlflow": ("mlflow",)}
"""The packages of each tracker; one of them is enough."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises UserError if the package of a tracker is not installed."""
    for name in names:
        if not any(find_spec(module) for module in MODULES[name]):
            raise UserError(f"--train.trackers {name}: the package is not installed; run `pip install {name}`")


class Trackers:
    """The trackers of the run in `out`. Use it as a context.

    If the run was tracked before, each tracker continues it: TensorBoard replaces its points after `step`, the others
    find their run by the id in trackers.json.

    out: None in processes that don't write. step: the steps that are done. settings: shown as the configuration of a
    new run. Raises UserError if a tracker can't start, for example because nobody is logged in.
    """

    def __init__(
        self, names: Sequence[str], out: Path | None, step: int = 0, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.trackers: list[GeneralTracker] = []
        if out is None:
            return
        path = out / "trackers.json"
        ids = json.loads(path.read_text()) if path.exists() else {}
        for name in names:
            is_new = name not in ids
            try:
                tracker, ids[name] = START[name](out, step, ids.get(name))
                if is_new and settings and name != "tensorboard":  # it would write a second run for them
                    tracker.store_init_configuration({key: str(value) for key, value in settings.items()})
            except Exception as error:  # of a package that we do not know
                self.finish()
                reason = one_line(error, 200)
                problem = f"--train.trackers {name}: it can't start ({reason})"
                raise UserError(f"{problem}; log in or set it up, or leave it out") from None
            self.trackers.append(tracker)
            write_json(path, ids)

    def log(self, values: Mapping[str, Any], step: int, part: str) -> None:
        """Show the finite numbers among `values` at `step`, under names such as train/total.

        part: `train` or `metrics` (FINAL).
        """
        numbers = {
            f"{part}/{name}": value
            for name, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        for tracker in self.trackers:
            # W&B ignores a step that a continued run has passed; without a step it shows the values at the end.
            at_end = tracker.name == "wandb" and part == FINAL
            tracker.log(numbers, step=None if at_end else step)

    def finish(self) -> None:
        """End the trackers' runs, which can be continued."""
        for tracker in self.trackers:
            tracker.finish()

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()


def _tensorboard(out: Path, step: int, id: str | None) -> tuple[GeneralTracker, str]:
    tracker = TensorBoardTracker("tensorboard", out, purge_step=step + 1)
    tracker.start()
    return tracker, "tensorboard"


def _wandb(out: Path, step: int, id: str | None) -> tuple[GeneralTracker, str]:
    id = id or uuid4().hex[:12]
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    tracker = WandBTracker(project, id=id, resume="allow", name=out.name, dir=str(out))
    tracker.start()
    return tracker, id


def _mlflow(out: Path, step: int, id: str | None) -> tuple[GeneralTracker, str]:
    tracker = MLflowTracker(PROJECT, run_id=id, run_name=out.name)
    tracker.start()
    return tracker, tracker.tracker.info.run_id


START = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
"""Each starts or continues one tracker: (out, step, id of the earlier run or None) to the tracker and the id."""
