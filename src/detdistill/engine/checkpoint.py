"""The checkpoint of a run: one file with its whole state, replaced atomically and restored exactly (bit-identical)."""

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from detdistill.errors import UserError, one_line
from detdistill.files import replacing


@dataclass
class Training:
    """What changes during a run. Random states are not part of it: `engine.fit` seeds every step.

    step: number of optimizer steps done. images: number of images used, over all processes. seconds: training time,
    over all resumptions. average: moving average of the student. scaler: torch's GradScaler under fp16.
    """

    distillation: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None = None
    scaler: Any = None
    step: int = 0
    images: int = 0
    seconds: float = 0.0


def checkpoint_path(out: Path) -> Path:
    """The checkpoint file of the run folder `out`."""
    return out / "checkpoint" / "state.pt"


def save_checkpoint(training: Training, fingerprint: Mapping[str, Any], out: Path) -> None:
    """Write the checkpoint of `out`, loadable with `weights_only=True`.

    fingerprint: the settings that a resumed run must share with this one.
    """
    state = {
        "distillation": training.distillation.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "average": training.average.state_dict() if training.average is not None else None,
        "scaler": training.scaler.state_dict() if training.scaler is not None else None,
        "step": training.step,
        "images": training.images,
        "seconds": training.seconds,
        "fingerprint": json.dumps(flat(fingerprint)),
    }
    with replacing(checkpoint_path(out)) as temporary:
        torch.save(state, temporary)


def load_checkpoint(training: Training, fingerprint: Mapping[str, Any], out: Path) -> None:
    """Restore `training` from the checkpoint of `out`. Raises UserError if it is missing, can't be read, or
    belongs to another run."""
    path = checkpoint_path(out)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no checkpoint to resume; start again with --overwrite") from None
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).split("\n")[0][:120]
        raise UserError(f"{path}: the checkpoint can't be read; start again with --overwrite ({reason})") from None
    _check_same(path, json.loads(state["fingerprint"]), flat(fingerprint))
    try:
        training.distillation.load_state_dict(state["distillation"])
        training.optimizer.load_state_dict(state["optimizer"])
        if training.average is not None:
            training.average.load_state_dict(state["average"])
    except (RuntimeError, ValueError) as error:
        reason = one_line(error, 200)
        raise UserError(
            f"{path}: the checkpoint belongs to another model ({reason}); use the recipe of that run, or another --out"
        ) from None
    if training.scaler is not None:
        training.scaler.load_state_dict(state["scaler"])
    training.step, training.images, training.seconds = state["step"], state["images"], state["seconds"]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"lr": 1}} as {"train.lr": 1}, with values as JSON returns them (tuples become lists)."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = json.loads(json.dumps(value, default=str))
    return leaves


def _check_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise UserError(
            f"{path}: can't resume, since {', '.join(changed)}; use the recipe of that run, or another --out"
        )
