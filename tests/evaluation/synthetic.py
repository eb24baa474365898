"""Random ground truth with the hard cases of COCO's metrics, and pycocotools as the reference."""

import contextlib
import io
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

CATEGORIES = {9: "ship", 0: "cat", 40: "sun", 5: "never there"}  # neither contiguous nor in order
IMAGES = (7, 3, 1000, 11, 64, 0)


def random_set(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth and results.

    With crowds, equal scores, images without objects, images without detections, and over 100 detections of a class.
    """
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in IMAGES:
        for _ in range(0 if image == 11 else rng.integers(1, 9)):
            side = rng.choice([12.0, 50.0, 150.0]) * rng.uniform(0.7, 1.3, 2)  # small, medium, large
            box = [*rng.uniform(0, 200, 2), *side]
            category = int(rng.choice([9, 0, 40]))
            annotation = {
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": side[0] * side[1] * rng.uniform(0.6, 1),
            }
            annotations.append({"id": len(annotations) + 1, "iscrowd": int(rng.random() < 0.15), **annotation})
            if image != 64:
                for _ in range(rng.integers(0, 4)):
                    results.append(_near(box, image, category, rng))
        for _ in range(130 if image == 1000 else 3 * (image != 64)):
            box = [*rng.uniform(0, 200, 2), 40, 40]
            category = 0 if image == 1000 else int(rng.choice([9, 0, 40, 5]))
            results.append(_near(box, image, category, rng))
    return dataset(annotations), [results[index] for index in rng.permutation(len(results))]


def dataset(annotations: list[dict[str, Any]]) -> dict[str, Any]:
    """COCO ground truth with IMAGES, CATEGORIES and these annotations."""
    return {
        "images": [{"id": image, "height": 400, "width": 400, "file_name": f"{image}.png"} for image in IMAGES],
        "categories": [{"id": category, "name": name} for category, name in CATEGORIES.items()],
        "annotations": annotations,
    }


def reference(
    ground_truth: dict[str, Any], results: list[dict[str, Any]]
) -> tuple[list[float | None], dict[str, float | None]]:
    """pycocotools' twelve metrics and its AP by class, in 0..100, with None for -1."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = ground_truth
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes([dict(result) for result in results]), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    per_class = {}
    for column, category in enumerate(run.params.catIds):
        values = run.eval["precision"][:, :, column, 0, 2]
        per_class[CATEGORIES[category]] = 100 * float(values[values > -1].mean()) if (values > -1).any() else None
    return [None if value == -1 else 100 * float(value) for value in run.stats], per_class


def _near(box: list[float], image: int, category: int, rng: np.random.Generator) -> dict[str, Any]:
    """A result whose box is close to this box."""
    moved = np.array(box) * [1, 1, *rng.uniform(0.8, 1.2, 2)] + [*rng.normal(0, 0.08 * box[2], 2), 0, 0]
    return {"image_id": image, "category_id": category, "bbox": moved.tolist(), "score": round(float(rng.random()), 1)}
