"""The whole state of a run in one file, put in place at once, and back again to the bit."""

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

from detdistill.errors import UserError
from detdistill.files import replacing


@dataclass
class Training:
    """What changes as a run goes on. There are no random states among it: `engine.fit` makes them anew for every step.

    step: optimizer steps done. images: seen, over all processes. seconds: spent, over all resumptions.
    """

    distillation: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None = None
    scaler: Any = None  # torch's GradScaler under fp16
    step: int = 0
    images: int = 0
    seconds: float = 0.0


def checkpoint_path(out: Path) -> Path:
    """Where the checkpoint of the run folder `out` is."""
    return out / "checkpoint" / "state.pt"


def save_checkpoint(training: Training, fingerprint: Mapping[str, Any], out: Path) -> None:
    """Write the checkpoint of `out`; loadable with `weights_only=True`. fingerprint: what a resumption must have in common with the run."""
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
    """Put `training` where the checkpoint of `out` left it. Raises UserError where there is none, or it is of another run."""
    path = checkpoint_path(out)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no checkpoint to resume; begin the run anew with --overwrite in place of --resume"
        ) from None
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: not a checkpoint that can be read ({reason}); begin again with --overwrite") from None
    _compare(path, json.loads(state["fingerprint"]), flat(fingerprint))
    try:
        training.distillation.load_state_dict(state["distillation"])
        training.optimizer.load_state_dict(state["optimizer"])
        if training.average is not None:
            training.average.load_state_dict(state["average"])
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: the checkpoint is of another model ({reason}); take the run's own recipe, or another --out"
        ) from None
    if training.scaler is not None:
        training.scaler.load_state_dict(state["scaler"])
    training.step, training.images, training.seconds = state["step"], state["images"], state["seconds"]


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """{"train": {"lr": 1}} to {"train.lr": 1}, as JSON gives it back (tuples become lists)."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{above}{name}.")
        else:
            leaves[f"{above}{name}"] = json.loads(json.dumps(value, default=str))
    return leaves


def _compare(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [
        f"{name} was {then.get(name)!r} and is {now.get(name)!r}"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
    if changed:
        raise UserError(
            f"{path}: can't resume, since {', '.join(changed)}; take the run's own recipe, or another --out"
        )
