"""Measure what tiles find in large pictures: COCO metrics with and without `--tile`.

    python bench/tiles.py --model RUN --data DATA [--split test] [--side 4] [--tiles 480,640] [--images N]
        [--device cpu] [--json FILE]

Images of the data set are joined to large pictures of `side` x `side` images. The model predicts each picture as a
whole, and then with tiles of each size. Then every box belongs to the image in which its center is, so the metrics are
those of COCO for these images. `alone` is the reference: each image as a picture of its own, as in `evaluate`. The time
is the wall-clock time per large picture.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from detdistill import evaluation
from detdistill.data import Record, Split, open_data
from detdistill.recipe import DataConfig, TrainConfig
from detdistill.run.predictor import Predictor, load_predictor
from detdistill.types import Detections

METRICS = ("AP", "AP50", "AR100")


def mosaics(split: Split, side: int) -> Iterator[tuple[Image.Image, list[tuple[Record, int, int]]]]:
    """Pictures of side x side images, and the image, left and top of each of its cells."""
    width, height = (max(getattr(record, name) for record in split.records) for name in ("width", "height"))
    count = side * side
    for start in range(0, len(split) - count + 1, count):
        sheet, cells = Image.new("RGB", (side * width, side * height)), []
        for place, record in enumerate(split.records[start : start + count]):
            left, top = width * (place % side), height * (place // side)
            sheet.paste(record.image(), (left, top))
            cells.append((record, left, top))
        yield sheet, cells


def divided(found: Detections, cells: Sequence[tuple[Record, int, int]]) -> list[Detections]:
    """The detections of each cell, clipped to its image, in pixels of the image."""
    centers = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    parts = []
    for record, left, top in cells:
        start, end = centers.new_tensor([left, top]), centers.new_tensor([left + record.width, top + record.height])
        inside = ((centers >= start) & (centers < end)).all(1)
        boxes = found.boxes[inside].clamp(start.repeat(2), end.repeat(2)) - start.repeat(2)
        parts.append(Detections(boxes, found.scores[inside], found.labels[inside]))
    return parts


def measure(model: Predictor, split: Split, side: int) -> dict[str, Any]:
    """The metrics of large pictures with the tiles of `model`. split: a multiple of side * side images."""
    results, seconds, pictures = [], 0.0, 0
    for sheet, cells in mosaics(split, side):
        started = time.perf_counter()
        (found,) = model.detect([sheet], ["picture"])
        seconds += time.perf_counter() - started
        pictures += 1
        records = [record for record, _, _ in cells]
        results += evaluation.coco_results(
            divided(found, cells),
            [record.id for record in records],
            [record.name for record in records],
            model.category_ids,
        )
    names = dict(zip(split.category_ids, split.classes, strict=True))
    metrics = evaluation.coco_metrics(split.ground_truth(), results, names)
    row = {name: metrics[name] for name in METRICS}
    return {"tile": model.tile, "side": side, **row, "boxes": len(results), "seconds": seconds / pictures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split")
    parser.add_argument("--side", type=int, default=4)
    parser.add_argument("--tiles", default="480,640")
    parser.add_argument("--images", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = DataConfig(path=options.data, eval_split=options.split)
    split = open_data(config).evaluation_split(config)
    count = min(options.images or len(split), len(split)) // options.side**2 * options.side**2
    split = replace(split, records=split.records[:count])
    train = TrainConfig(batch_size=8, device=options.device)
    model = load_predictor(options.model, DataConfig(), train, None, print)
    rows = [
        {**measure(model, split, 1), "setting": "alone"},
        {**measure(model, split, options.side), "setting": "whole"},
    ]
    for tile in map(int, options.tiles.split(",")):
        rows.append({**measure(replace(model, tile=tile), split, options.side), "setting": f"tile {tile}"})
    for row in rows:
        numbers = "  ".join(f"{name} {row[name]:5.1f}" for name in METRICS)
        print(f"{row['setting']:10}  {numbers}  {row['boxes']:6} boxes  {row['seconds']:.2f} s")
    result = {"model": options.model, "images": count, "rows": rows}
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
