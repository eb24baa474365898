"""What a run leaves on the disk, and how it is found again: recipe, environment, weights, metrics."""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from detdistill.distributed import is_main, world_size
from detdistill.errors import UserError
from detdistill.files import replacing, write_json, write_text
from detdistill.recipe import ModelConfig, Recipe, parse, read_yaml

FILES = (
    "recipe.yaml",
    "environment.json",
    "log.jsonl",
    "metrics.json",
    "predictions.json",
    "model.safetensors",
    "model.json",
)
_PACKAGES = (
    "detdistill",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "accelerate",
    "hotcoco",
    "safetensors",
    "numpy",
    "pillow",
)


class _Inline(yaml.SafeDumper):
    """Lists on one line, so that a recipe stays on a page."""


_Inline.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


def recipe_text(recipe: Recipe) -> str:
    """The recipe as YAML, every field of it."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=_Inline, sort_keys=False)


class Card(BaseModel):
    """model.json: what is needed, besides the weights, to build the detector again and to read its answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelConfig
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]  # the data set's own ids, in the order of the classes
    image_size: int | tuple[int, int]


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def finished(self) -> bool:
        return (self.path / "metrics.json").exists()

    def recipe(self) -> Recipe | None:
        """The recipe it was started with, or None."""
        path = self.path / "recipe.yaml"
        return parse(read_yaml(path), str(path)) if path.exists() else None

    def metrics(self) -> dict[str, Any]:
        return json.loads((self.path / "metrics.json").read_text())

    def begin(self, recipe: Recipe, *, overwrite: bool) -> None:
        """Makes the folder and writes recipe and environment. What an earlier run left is removed first where `overwrite` says so; nothing else."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {self.path}: can't be made ({error.strerror})") from None
        if not is_main():
            return
        if overwrite:
            self._empty()
        self._write(recipe)
        write_json(self.path / "environment.json", environment())

    def clear(self) -> None:
        """Removes the run, and its folder where nothing else lies in it. Otherwise recipe.yaml stays, which says that it may be replaced."""
        recipe = (self.path / "recipe.yaml").read_text()
        self._empty()
        if any(self.path.iterdir()):
            write_text(self.path / "recipe.yaml", recipe)
        else:
            self.path.rmdir()

    def _empty(self) -> None:
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / "checkpoint", ignore_errors=True)

    def end(self, recipe: Recipe, metrics: Mapping[str, Any], results: list[dict[str, Any]]) -> None:
        """The run is finished once its metrics are there. The recipe is written again: a resumed run may have been given more steps.

        results: the COCO results behind the metrics.
        """
        self._write(recipe)
        write_text(self.path / "predictions.json", json.dumps(results, allow_nan=False) + "\n")
        write_json(self.path / "metrics.json", metrics)

    def _write(self, recipe: Recipe) -> None:
        write_text(self.path / "recipe.yaml", recipe_text(recipe))

    def card(self) -> Card:
        """Raises UserError where model.json is missing or isn't one."""
        path = self.path / "model.json"
        try:
            return Card.model_validate_json(path.read_text())
        except OSError:
            raise UserError(f"{self.path}: not a run folder with a trained model (it has no model.json)") from None
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{path}: field {field!r}: {first['msg']}; the file was not written by this version"
            ) from None

    def save(self, model: Any, card: Card) -> None:
        """The weights, and what is needed to build the detector again."""
        from safetensors.torch import save_model

        with replacing(self.path / "model.safetensors") as temporary:
            save_model(model, str(temporary))
            temporary.chmod(0o644)  # safetensors makes files that nobody else can read
        write_text(self.path / "model.json", card.model_dump_json(indent=2) + "\n")


def is_run(path: str | Path) -> bool:
    """Whether a trained model lies there."""
    return (Path(path) / "model.json").is_file()


def choose(out: Path | None, name: str, *, resume: bool, overwrite: bool, mark: str = "recipe.yaml") -> Path:
    """The folder for a new or resumed run: `out`, or runs/NAME, runs/NAME-2, ... Nothing is created yet.

    mark: the file that says a folder is a run's, and may be overwritten. Raises UserError for a non-empty `out` without resume or
    overwrite, and for one that overwrite must not touch.
    """
    if resume and overwrite:
        raise UserError("--resume goes on with a run, --overwrite throws it away: give one of them")
    if out is None:
        if resume:
            raise UserError("--resume needs --out DIR, the folder of the run to go on with")
        if world_size() > 1:
            raise UserError("with several processes say --out DIR, so that all of them mean the same folder")
        out, number = Path("runs") / name, 1
        while out.exists():
            number += 1
            out = Path("runs") / f"{name}-{number}"
        return out
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: it is a file; name a folder")
    filled = out.is_dir() and any(out.iterdir())
    if resume and not (out / mark).exists():
        raise UserError(f"--resume: {out} holds no run (no {mark}); leave out --resume to begin one")
    if filled and overwrite and not (out / mark).exists():
        raise UserError(
            f"--overwrite: {out} is not empty and not a run folder, so it is left alone; name another --out"
        )
    if filled and not (resume or overwrite) and is_main():
        raise UserError(
            f"--out {out} is not empty; go on with it by --resume, replace it by --overwrite, or name another folder"
        )
    return out


def environment() -> dict[str, Any]:
    """Versions, machine, commit and command: what a reader of the numbers asks for."""
    import torch

    return {
        "command": shlex.join(sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "processes": world_size(),
        "versions": _versions(),
    }


def _versions() -> Mapping[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _commit() -> str | None:
    """Commit of the working folder, with `+` where there are changes; None outside git."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip()
