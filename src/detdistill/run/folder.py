"""The folder of one run: recipe, environment, weights, metrics."""

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

from detdistill.detectors.build import with_defaults
from detdistill.detectors.freezing import SAVED, with_freezing
from detdistill.detectors.statistics import saved_statistics
from detdistill.distributed import is_main, world_size
from detdistill.errors import UserError
from detdistill.files import replacing, write_json, write_text
from detdistill.recipe import ModelConfig, Recipe, parse, read_yaml

FILES = (
    "recipe.yaml",
    "environment.json",
    "splits.json",
    "log.jsonl",
    "metrics.json",
    "predictions.json",
    "model.safetensors",
    "model.json",
    "report.html",
)
COMPARISON = "comparison.json"  # marks the folder of a comparison
TEACHER_BOXES = "teacher_predictions.json"  # of a comparison
PACKAGES = (
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
)  # versions of these are written to environment.json


class _InlineLists(yaml.SafeDumper):
    """Writes each list on one line, so that a recipe fits on a page."""


_InlineLists.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


def recipe_text(recipe: Recipe) -> str:
    """The recipe as YAML with every field."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=_InlineLists, sort_keys=False)


class ModelCard(BaseModel):
    """model.json: what is needed besides the weights to build the detector again and to read its predictions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelConfig
    classes: tuple[str, ...]
    category_ids: tuple[int | str, ...]  # ids of the data set, in the order of the classes
    image_size: int | tuple[int, int]


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def finished(self) -> bool:
        """True once the metrics are written."""
        return (self.path / "metrics.json").exists()

    @property
    def has_steps(self) -> bool:
        """True if the log has the line of at least one step."""
        log = self.path / "log.jsonl"
        return log.exists() and log.stat().st_size > 0

    def recipe(self) -> Recipe | None:
        """The recipe of the run, or None if there is none yet."""
        path = self.path / "recipe.yaml"
        return parse(read_yaml(path), str(path)) if path.exists() else None

    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json."""
        return json.loads((self.path / "metrics.json").read_text())

    def begin(self, recipe: Recipe, *, overwrite: bool) -> None:
        """Create the folder and write recipe and environment.

        With `overwrite`, the files of an earlier run are removed first, and no others. Raises UserError if the folder
        can't be made.
        """
        make_folder(self.path)
        if not is_main():
            return
        if overwrite:
            self._remove_files()
        self._write_recipe(recipe)
        write_json(self.path / "environment.json", environment())

    def clear(self) -> None:
        """Remove the run, and the folder if nothing else is in it.

        Otherwise recipe.yaml stays: it marks the folder as one that may be overwritten.
        """
        recipe = (self.path / "recipe.yaml").read_text()
        self._remove_files()
        if any(self.path.iterdir()):
            write_text(self.path / "recipe.yaml", recipe)
        else:
            self.path.rmdir()

    def save(self, model: Any, card: ModelCard) -> None:
        """Write the weights, and the card that is needed to build the detector again.

        The card always holds the pixel statistics: a detector that was built without any has those of its backbone.
        """
        from safetensors.torch import save_model

        with replacing(self.path / "model.safetensors") as temporary:
            save_model(model, str(temporary))
            temporary.chmod(0o644)  # safetensors creates files that only their owner can read
        card = card.model_copy(update={"model": with_defaults(card.model)})
        write_text(self.path / "model.json", card.model_dump_json(indent=2) + "\n")

    def card(self) -> ModelCard:
        """The content of model.json. Raises UserError if the file is missing or invalid."""
        path = self.path / "model.json"
        try:
            card = ModelCard.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError:
            raise UserError(f"{self.path} is not a run folder with a trained model: it has no model.json") from None
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "json_invalid":
                raise UserError(f"{path}: not a JSON file ({first['msg']}); copy it again, or train again") from None
            field = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{path}: field {field!r}: {first['msg']}; the file was edited, or another version wrote it"
            ) from None
        mean, std = saved_statistics(card.model)
        model = card.model.model_copy(update={"mean": mean, "std": std})
        return card.model_copy(update={"model": with_freezing(model, SAVED)})

    def end(self, recipe: Recipe, metrics: Mapping[str, Any], results: list[dict[str, Any]]) -> None:
        """Write predictions and metrics, after which the run counts as finished.

        The recipe is written again, since a resumed run may have more steps. results: COCO results behind the metrics.
        """
        self._write_recipe(recipe)
        write_text(self.path / "predictions.json", json.dumps(results, allow_nan=False) + "\n")
        write_json(self.path / "metrics.json", metrics)

    def _remove_files(self) -> None:
        for name in (*FILES, "trackers.json"):
            (self.path / name).unlink(missing_ok=True)
        for name in ("checkpoint", "tensorboard", "wandb"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def _write_recipe(self, recipe: Recipe) -> None:
        write_text(self.path / "recipe.yaml", recipe_text(recipe))


def is_run(path: str | Path) -> bool:
    """True if the folder holds a trained model."""
    return (Path(path) / "model.json").is_file()


def choose_folder(out: Path | None, name: str, *, resume: bool, overwrite: bool, mark: str = "recipe.yaml") -> Path:
    """The folder of a new or resumed run: `out`, or runs/NAME, runs/NAME-2, ... Nothing is created.

    mark: the file that marks a folder as one that may be overwritten. Raises UserError if `out` is not empty and
    neither `resume` nor `overwrite` is set, and if `overwrite` would touch a folder without the mark.
    """
    if resume and overwrite:
        raise UserError("--resume continues a run, --overwrite deletes it: give one of them")
    if out is None:
        return _new_folder(name, resume)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    filled = out.is_dir() and any(out.iterdir())
    if resume and not (out / mark).exists():
        raise UserError(f"--resume: {out} holds no run (no {mark}); leave out --resume to start a new one")
    if filled and overwrite and not (out / mark).exists():
        raise UserError(
            f"--overwrite: {out} is not empty and not a run folder, so nothing is deleted; choose another --out"
        )
    if filled and not (resume or overwrite) and is_main():
        raise UserError(
            f"--out {out} is not empty: continue it with --resume, replace it with --overwrite, or choose another "
            "folder"
        )
    return out


def _new_folder(name: str, resume: bool) -> Path:
    """The first of runs/NAME, runs/NAME-2, ... that does not exist."""
    if resume:
        raise UserError("--resume needs --out DIR, the folder of the run to continue")
    if world_size() > 1:
        raise UserError("a run with several processes needs --out DIR, so that all of them use the same folder")
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def make_folder(out: Path) -> None:
    """Create the folder of a run, unless it exists. Raises UserError if it can't be created."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: the folder can't be created ({error.strerror}); choose another folder") from None


def require_empty(out: Path, overwrite: bool) -> None:
    """Raises UserError if `out` is a file, or a folder with something in it and `overwrite` is not set."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UserError(f"--out {out} is not empty: replace its files with --overwrite, or choose another folder")


def environment() -> dict[str, Any]:
    """Command, commit, machine and versions, for the reader of the numbers."""
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
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str | None:
    """The commit of the working folder, with `+` if there are changes; None outside a git repository."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
