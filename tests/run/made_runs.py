"""Run folders that were not trained: their boxes are the ground truth, moved as a test wants it."""

import json
from pathlib import Path
from typing import Any

from detdistill import evaluation
from detdistill.data import Split, open_data
from detdistill.files import write_json, write_text
from detdistill.recipe import Recipe
from detdistill.run.folder import recipe_text

from .recipes import small_recipe

DATA = {"path": "shapes:40", "image_size": 64}


def recipe(*methods: str, seed: int = 0, teacher: str = "", **over: Any) -> Recipe:
    """The recipe of a run on forty built-in images."""
    fields: dict[str, Any] = {"data": DATA, "methods": {name: {} for name in methods}, "train": {"seed": seed}}
    fields |= {"teacher": {"path": teacher}} if teacher else {}
    for part, values in over.items():
        fields[part] = {**fields.get(part, {}), **values}
    return small_recipe(**fields)


def boxes(split: Split, moved: float = 0.0, every: int = 1) -> list[dict[str, Any]]:
    """The objects of the images as results, each moved to the right by this share of its width.

    every: only the boxes of every so many images are moved.
    """
    results = []
    for number, record in enumerate(split.records):
        shift = moved if number % every == 0 else 0.0
        for (left, top, right, bottom), label in zip(
            record.corners.tolist(), record.class_indices.tolist(), strict=True
        ):
            box = [left + shift * (right - left), top, right - left, bottom - top]
            results.append({"image_id": record.id, "category_id": split.category_ids[label], "bbox": box, "score": 0.9})
    return results


def write_run(folder: Path, settings: Recipe, moved: float = 0.0, every: int = 1, started: str = "2026-01-02") -> Path:
    """A finished run whose boxes are moved. Its log has two lines."""
    split = open_data(settings.data).evaluation_split(settings.data)
    names = dict(zip(split.category_ids, split.classes, strict=True))
    results = boxes(split, moved, every)
    costs = {"params": 1000, "flops": 2000, "latency_ms": 3.0, "train_seconds": 4.0, "images_per_second": 5.0}
    write_text(folder / "recipe.yaml", recipe_text(settings))
    write_json(folder / "environment.json", {"command": "detdistill train", "started": started, "versions": {}})
    write_json(folder / "metrics.json", evaluation.coco_metrics(split.ground_truth(), results, names) | costs)
    write_json(folder / "predictions.json", results)
    write_text(folder / "model.json", "{}")
    write_text(folder / "model.safetensors", "weights")
    rows = [{"step": step, "task_box": step + settings.train.seed, "total": 1.0} for step in (1, 10)]
    write_text(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_comparison(folder: Path, labels: dict[str, tuple[float, float]], teacher: str = "") -> Path:
    """A comparison with two seeds. labels: how far the boxes of each seed are moved."""
    for label, shifts in labels.items():
        methods = [] if label == "none" else label.split("+")
        for seed, moved in enumerate(shifts):
            write_run(folder / label / f"seed-{seed}", recipe(*methods, seed=seed, teacher=teacher), moved)
    summary = {"teacher": {"AP": 90.0, "AP50": 95.0, "params": 9, "flops": 9, "latency_ms": 9.0}, "stopped": {}}
    write_json(folder / "comparison.json", summary)
    return folder
