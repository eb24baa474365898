"""Detectors from what a person types: HEAD:BACKBONE, a run folder, or a teacher's weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

from detdistill.detectors import build as builders
from detdistill.detectors.weights import load_teacher
from detdistill.distributed import local_rank
from detdistill.engine.device import find_device
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig, parse
from detdistill.run.folder import RunFolder, is_run
from detdistill.types import Detector


def build(name: str, classes: Sequence[str], **options: Any) -> Detector:
    """A detector to train, such as build("gfl:resnet18", ["circle", "square"], channels=64). options: fields of ModelConfig."""
    return builders.build(parse({"model": {"name": name, **options}}, "build").model, tuple(classes))


def load(folder: str | Path) -> Detector:
    """The trained detector of a run folder, in evaluation mode. Raises UserError where a weight is missing or doesn't fit."""
    run = RunFolder(Path(folder))
    return _restore(run, run.card().model)


def adopt(model: ModelConfig) -> ModelConfig:
    """A model named by a run folder gets that run's architecture; what else is asked of it is checked when its weights are loaded."""
    if not is_run(model.name):
        return builders.with_default_strides(model)
    saved = RunFolder(Path(model.name)).card().model
    asked = {field: getattr(model, field) for field in model.model_fields_set}
    return ModelConfig.model_validate({**saved.model_dump(), **asked})


def start(model: ModelConfig, classes: Sequence[str], seed: int) -> tuple[Detector, ModelConfig]:
    """The detector to train, drawn from `seed` or with the weights of a run folder; and what it is, as HEAD:BACKBONE.

    Raises UserError for a run folder of other classes.
    """
    if not model.name:
        raise UserError("no model: give --model or --student HEAD:BACKBONE, such as gfl:resnet18, or a run folder")
    if model.name.startswith(("torchvision:", "hf:", "timm:")):
        raise UserError(
            f"model {model.name!r} is trained already, and can teach; to train give HEAD:BACKBONE, such as gfl:resnet18, or a run folder"
        )
    torch.manual_seed(seed)
    if not is_run(model.name):
        return builders.build(model, tuple(classes)), model
    run = RunFolder(Path(model.name))
    card = run.card()
    if card.classes != tuple(classes):
        raise UserError(
            f"model {model.name}: was trained on {', '.join(card.classes)}, the data have {', '.join(classes)}; build a new one"
        )
    config = model.model_copy(update={"name": card.model.name})
    return _restore(run, config), config


def find(path: str, classes: Sequence[str], model: ModelConfig = ModelConfig()) -> tuple[Detector, str]:
    """A trained detector and how its weights met it. path: a run folder, or a teacher as `load_teacher` knows them. Raises UserError."""
    if not path:
        raise UserError("no teacher: give a run folder, torchvision:NAME, hf:NAME or HEAD:BACKBONE=FILE with --teacher")
    if is_run(path):
        detector = load(path)
        return detector, f"{path}: all {len(detector.state_dict())} tensors matched"
    if Path(path).is_dir():
        if (Path(path) / "config.json").is_file():
            raise UserError(f"{path}: not a run folder; if transformers wrote it, say hf:{path}")
        RunFolder(Path(path)).card()  # says what is missing there
    detector, report = load_teacher(path, tuple(classes), model)
    return detector, str(report)


def _restore(run: RunFolder, model: ModelConfig) -> Detector:
    """The architecture `model` with the run's weights, strictly."""
    card = run.card()
    config = model.model_copy(update={"name": card.model.name})
    detector = builders.rebuild(config.model_copy(update={"backbone_weights": card.model.backbone_weights}), card.classes)
    module, path = cast(nn.Module, detector), run.path / "model.safetensors"
    try:
        missing, unexpected = load_model(module, path, strict=False)  # knows which names share one tensor
    except FileNotFoundError:
        raise UserError(
            f"{path}: there are no weights; the run did not finish, go on with it by --resume --out {run.path}"
        ) from None
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: not the weights of {config.name} as asked for ({reason})") from None
    odd = [*missing, *unexpected]
    if odd:
        raise UserError(
            f"{path}: {len(missing)} tensors are missing and {len(unexpected)} too many for {config.name}, such as {odd[0]!r}"
        )
    module.eval()
    return detector


def place(detector: Detector, device: str) -> torch.device:
    """Put the detector on the device of that name; under torchrun, on this process's own GPU."""
    found = find_device(device)
    if found.type == "cuda" and found.index is None:
        found = torch.device("cuda", local_rank())
    cast(nn.Module, detector).to(found)
    return found
