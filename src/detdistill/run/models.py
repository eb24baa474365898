"""Detectors from what a person types: HEAD:BACKBONE, a run folder, or the weights of a teacher."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

from detdistill.detectors import build as builders
from detdistill.detectors.freezing import check_new, with_freezing
from detdistill.detectors.weights import load_teacher
from detdistill.distributed import local_rank
from detdistill.engine.device import find_device
from detdistill.errors import UserError, one_line
from detdistill.exporting.runtime import ExportedDetector, is_exported
from detdistill.recipe import DataConfig, ModelConfig, parse
from detdistill.run.folder import ModelCard, RunFolder, is_run, make_folder, require_empty
from detdistill.types import Detector

logger = logging.getLogger("detdistill.run")


def build(name: str, classes: Sequence[str], **options: Any) -> Detector:
    """A detector to train, such as build("gfl:resnet18", ["circle", "square"], channels=64).

    options: fields of `ModelConfig`. Raises UserError if an option is unknown or does not fit the head or backbone.
    """
    return builders.build(parse({"model": {"name": name, **options}}, "build").model, tuple(classes))


def load(folder: str | Path) -> Detector:
    """The trained detector of a run folder, in evaluation mode. Raises UserError if a weight is missing or does not
    fit.
    """
    run = RunFolder(Path(folder))
    return _restore(run, run.card().model)


def save(
    detector: Detector,
    folder: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    category_ids: Sequence[int] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a detector as a run folder, which `load`, `predict`, `evaluate`, `export` and --teacher accept.

    detector: from `build` or `load`, trained in any way. image_size: side, or (height, width), that images are scaled
    to fit into; None: the default of the recipe, with a warning. category_ids: of the classes in predictions; None: 1,
    2, ... Raises UserError if the folder is not empty and `overwrite` is not set, if it is not known how the detector
    was built, or if there is not one category id per class. Returns the folder.
    """
    config, out = builders.config_of(detector), Path(folder)
    classes = detector.info.classes
    ids = tuple(range(1, len(classes) + 1)) if category_ids is None else tuple(category_ids)
    if config is None:
        made_by = "build, load or a head of your own in DETECTORS"
        raise UserError(f"save {folder}: it is not known how this detector was built; make it with {made_by}")
    if len(ids) != len(classes):
        raise UserError(f"save {folder}: {len(ids)} category ids for {len(classes)} classes; give one per class")
    if image_size is None:
        image_size = DataConfig().image_size
        logger.warning("save %s: no image_size is given; %s is stored", folder, image_size)
    require_empty(out, overwrite)
    make_folder(out)
    RunFolder(out).save(detector, ModelCard(model=config, classes=classes, category_ids=ids, image_size=image_size))
    return out


def adopt(model: ModelConfig) -> ModelConfig:
    """The model config with the architecture of the run folder that it names, or with the defaults of its head and
    backbone.

    Fields that are set explicitly stay; whether the weights fit them is checked when the weights are loaded.
    """
    if not is_run(model.name):
        return builders.with_defaults(model)
    saved = RunFolder(Path(model.name)).card().model
    explicit = {field: getattr(model, field) for field in model.model_fields_set}
    explicit["options"] = {**saved.options, **model.options}
    return ModelConfig.model_validate({**saved.model_dump(), **explicit})


def start(
    model: ModelConfig,
    classes: Sequence[str],
    seed: int,
    say: Callable[[str], None],
    *,
    with_weights: bool = True,
) -> tuple[Detector, ModelConfig]:
    """The detector to train, and its config as HEAD:BACKBONE.

    Its weights are drawn from `seed`, or are those of the run folder that `model` names. say: prints a line, here about
    fields that the head does not read. with_weights: False leaves the backbone of a new detector random, and nothing is
    downloaded. Raises UserError if no model is named, or if the run folder has other classes.
    """
    if not model.name:
        raise UserError("no model: give --model or --student HEAD:BACKBONE, such as gfl:resnet18, or a run folder")
    if model.name.startswith(("torchvision:", "hf:", "timm:")):
        raise UserError(
            f"model {model.name!r} is already trained and can only teach; to train, give HEAD:BACKBONE, such as "
            "gfl:resnet18, or a run folder"
        )
    torch.manual_seed(seed)
    if not is_run(model.name):
        check_new(model)
        make = builders.build if with_weights else builders.rebuild
        detector = make(model, tuple(classes))
        for field in builders.fields_without_effect(model):
            head, _ = builders.split_name(model.name)
            say(f"note: model.{field} {getattr(model, field)} has no effect, because {head} does not read it")
        return detector, model
    run = RunFolder(Path(model.name))
    card = run.card()
    if card.classes != tuple(classes):
        raise UserError(
            f"model {model.name} was trained on the classes {', '.join(card.classes)}, but the data has "
            f"{', '.join(classes)}; build a new model"
        )
    own = {"name": card.model.name, "backbone_weights": card.model.backbone_weights}
    if model.backbone_weights != own["backbone_weights"]:
        say(f"note: model.backbone_weights {model.backbone_weights} has no effect: training goes on from {model.name}")
    config = with_freezing(model.model_copy(update=own))
    return _restore(run, config), config


def find(path: str, classes: Sequence[str], model: ModelConfig = ModelConfig()) -> tuple[Detector, str]:
    """A trained detector, and a report of how its weights matched the architecture.

    path: a run folder, or a teacher as described at `load_teacher`. Raises UserError if it can't be found or loaded.
    """
    if not path:
        raise UserError("no teacher: give --teacher with a run folder, torchvision:NAME, hf:NAME or HEAD:BACKBONE=FILE")
    if is_exported(path):
        raise UserError(f"{path}: an exported file can only detect; give the run folder that it was exported from")
    if is_run(path):
        detector = load(path)
        return detector, f"{path}: all {len(detector.state_dict())} tensors matched"
    if Path(path).is_dir():
        if (Path(path) / "config.json").is_file():
            raise UserError(f"{path} is not a run folder; if transformers wrote it, give hf:{path}")
        RunFolder(Path(path)).card()  # raises UserError that says what is missing in the folder
    detector, report = load_teacher(path, tuple(classes), model)
    return detector, str(report)


def check_not_set(path: str, model: ModelConfig) -> None:
    """Raises UserError if the teacher `path` is a run folder and `model` is set, although the folder stores its own."""
    if not is_run(path):
        return
    for name, field in ModelConfig.model_fields.items():
        if getattr(model, name) != field.get_default(call_default_factory=True):
            problem = f"{path} is a run folder, which stores its own architecture"
            raise UserError(f"--teacher.model.{name.replace('_', '-')}: {problem}; leave it out")


def find_detector(path: str, classes: Sequence[str], model: ModelConfig = ModelConfig()) -> tuple[Detector, str]:
    """As `find`, for --model, which can also be an exported file.

    Raises UserError if the model only gives features and detects nothing.
    """
    if is_exported(path):
        exported = ExportedDetector(Path(path))
        return exported, f"{path}: exported {exported.card.head}, {exported.card.precision}"
    detector, report = find(path, classes, model)
    if not detector.info.classes:
        raise UserError(f"--model {path}: it only gives features and detects nothing; use it as a teacher of features")
    return detector, report


def _restore(run: RunFolder, model: ModelConfig) -> Detector:
    """The architecture `model` with the weights of the run. Raises UserError unless every tensor fits."""
    card = run.card()
    saved = {"name": card.model.name, "backbone_weights": card.model.backbone_weights}
    detector = builders.rebuild(model.model_copy(update=saved), card.classes)
    path = run.path / "model.safetensors"
    try:
        # load_model resolves names that share one tensor.
        missing, unexpected = load_model(cast(nn.Module, detector), path, strict=False)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: the run did not finish; continue it with --resume --out {run.path}"
        ) from None
    except SafetensorError as error:
        raise UserError(f"{path}: the file is damaged ({error}); copy it again, or train again") from None
    except RuntimeError as error:
        reason = one_line(error, 160)
        raise UserError(f"{path}: the weights do not match the architecture of {card.model.name} ({reason})") from None
    unmatched = [*missing, *unexpected]
    if unmatched:
        raise UserError(
            f"{path}: {len(missing)} tensors are missing and {len(unexpected)} are unexpected for {card.model.name}; "
            f"the first is {unmatched[0]!r}"
        )
    builders.remember(detector, model.model_copy(update=saved))
    return detector.eval()


def category_ids_of(model: str, detector: Detector) -> tuple[int | str, ...]:
    """The category ids of a model's classes in its data set. 1, 2, ... if the model does not store them."""
    if isinstance(detector, ExportedDetector):
        return detector.card.category_ids
    return (
        RunFolder(Path(model)).card().category_ids if is_run(model) else tuple(range(1, len(detector.info.classes) + 1))
    )


def place(detector: Detector, device: str) -> torch.device:
    """Move the detector to the device of that name and return the device; under torchrun, the GPU of this process."""
    target = find_device(device)
    if target.type == "cuda" and target.index is None:
        target = torch.device("cuda", local_rank())
    detector.to(target)
    return target
