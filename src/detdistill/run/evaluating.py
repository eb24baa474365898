"""The AP of a trained detector on a data set, and what the detector costs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from detdistill import evaluation
from detdistill.data import Data, EvalLoader, Split, open_data
from detdistill.data.ids import with_file_ids
from detdistill.data.transforms import canvas_size
from detdistill.distributed import is_initialized, is_main, rank, world_size
from detdistill.engine.resources import worker_count
from detdistill.errors import UserError
from detdistill.exporting.runtime import ExportedDetector
from detdistill.files import write_json
from detdistill.recipe import DataConfig, ModelConfig, TrainConfig
from detdistill.run.defaults import shown, with_known_size, with_saved_data
from detdistill.run.folder import RunFolder, is_run, require_empty
from detdistill.run.models import find_detector, place
from detdistill.run.splits import trained_on
from detdistill.run.tables import printer
from detdistill.types import Detector

SHOWN = 8  # class names in a message


def evaluate(
    model: str | Path | Detector,
    data: DataConfig | str | None = None,
    *,
    train: TrainConfig = TrainConfig(),
    built: ModelConfig = ModelConfig(),
    out: Path | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """COCO metrics (0..100), AP per class, and cost of a run folder, a pretrained detector, or a detector object.

    A run folder is evaluated on its own data, split and image size, where `data` sets nothing else. train: batch size,
    workers, device. built: the architecture of HEAD:BACKBONE=FILE. out: folder for metrics.json and predictions.json;
    without it nothing is written. Raises UserError if the image size of a state dict is not given, or if model and data
    have different classes.
    """
    say = printer(console)
    config = DataConfig(path=data) if isinstance(data, str) else data or DataConfig()
    if out is not None:
        require_empty(out, overwrite)
    if isinstance(model, str | Path):
        _check_architecture(model, built)
        config = with_known_size(with_saved_data(config, model), model, say)
    opened = open_data(config)
    for note in opened.notes:
        say(note)
    split = opened.evaluation_split(config)
    if isinstance(model, str | Path):
        if (warning := trained_on(Path(model), opened, split)) is not None:
            say(warning)
        detector, report = find_detector(str(model), opened.classes, built)
        say(f"model: {report}")
    else:
        detector = model
    check_classes(detector, opened)
    place(detector, train.device)
    say(f"evaluating on the {split.name} split, {len(split)} images, image size {shown(config.image_size)}")
    metrics, results = measure(detector, opened, split, config, train)
    if out is not None and is_main():
        write_json(out / "predictions.json", results)
        write_json(out / "metrics.json", metrics)
    return metrics


def _check_architecture(model: str | Path, built: ModelConfig) -> None:
    """Raises UserError if `built` sets a field of a run folder to another value than the stored one."""
    if not is_run(model):
        return
    saved = RunFolder(Path(model)).card().model
    for field in sorted(built.model_fields_set - {"name", "backbone_weights"}):
        if getattr(built, field) != getattr(saved, field):
            problem = f"a run folder stores its own architecture, with {field} {getattr(saved, field)}"
            raise UserError(f"--model {model}: {problem}; leave out model.{field}")


def check_classes(detector: Detector, data: Data) -> None:
    """Raises UserError if the detector has other classes than the data."""
    if set(detector.info.classes) != set(data.classes):
        model_classes = ", ".join(detector.info.classes[:SHOWN])
        data_classes = ", ".join(data.classes[:SHOWN])
        raise UserError(
            f"the model has the classes {model_classes}, the data has {data_classes}; evaluate it on data with its own "
            "classes"
        )


def measure(
    detector: Detector, data: Data, split: Split, config: DataConfig, train: TrainConfig, *, costs: bool = True
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """COCO metrics on `split` (0..100) with the detector's cost, and the COCO results behind them.

    A result has {image_id, category_id, category_name, bbox, score}. The detector must be on its device.
    costs: also measure parameters, operations and latency.
    """
    device = next((parameter.device for parameter in detector.parameters()), torch.device("cpu"))
    loader = EvalLoader(split, config, **loader_options(train))
    ids = dict(zip(data.classes, data.category_ids, strict=True))
    names = dict(zip(data.category_ids, data.classes, strict=True))
    order = [ids[name] for name in detector.info.classes]
    metrics, results = evaluation.evaluate(detector, loader, split.ground_truth(), order, names, device)
    if costs:
        metrics |= evaluation.cost(detector, canvas_size(config), device)
        if isinstance(detector, ExportedDetector):  # its weights and operations can't be counted
            metrics |= {"params": detector.card.parameters, "flops": detector.card.operations}
    named = [_named(result, names) for result in with_file_ids(results, split)]
    return metrics, named


def _named(result: Mapping[str, Any], names: Mapping[Any, str]) -> dict[str, Any]:
    """A COCO result with the name of its class after the id, as `predict` writes it."""
    place = {name: result[name] for name in ("image_id", "category_id")}
    return {**place, "category_name": names[result["category_id"]], **result}


def loader_options(train: TrainConfig) -> dict[str, int]:
    """Batch size and workers of a loader, and this process's share of the images if the processes have met."""
    share = {"rank": rank(), "processes": world_size()} if is_initialized() else {}
    return {"batch_size": train.images_per_step, "workers": worker_count(train), **share}
