"""Can a detector learn a handful of pictures by heart? What can't has a fault in its targets, its losses or its boxes.

    python bench/overfit.py --model gfl:resnet18 [--images 16] [--steps 400] [--batch-size 8] [--lr 1e-3] [--channels 64] [--strides 8,16,32]
                            [--queries 20] [--decoder-layers 3] [--goal 90] [--json FILE]

Built-in shapes, 128 x 160, without augmentation; random weights unless others are asked for; the engine's own loop, then COCO's AP (0..100) on
the same pictures. It prints one JSON object; exit code 1 where the AP is below the goal.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console

from detdistill.data import TrainLoader, open_data
from detdistill.data.shapes import HEIGHT, WIDTH
from detdistill.detectors.build import build, split_name
from detdistill.detectors.registry import DETECTORS
from detdistill.engine.distillation import Distillation
from detdistill.engine.fit import fit
from detdistill.recipe import DataConfig, ModelConfig, TrainConfig
from detdistill.run.evaluating import measure, place

PUBLISHED = {name: record.strides for name, record in DETECTORS.items() if record.strides}
PYRAMIDS = {"faster_rcnn": (4, 8, 16, 32), "mask_rcnn": (4, 8, 16, 32), **PUBLISHED}  # others: 8, 16, 32


def overfit(model: ModelConfig, images: int, train: TrainConfig, steps: int) -> dict[str, Any]:
    """Train on `images` pictures for `steps` steps, and measure on them: AP, AP50, seconds, the last loss."""
    config = DataConfig(path=f"shapes:{max(images, 4)}", image_size=(HEIGHT, WIDTH), flip=0.0)
    data = open_data(config)
    split = data.split("train").take(images)
    loader = TrainLoader(split, config, batch_size=train.batch_size, seed=train.seed)
    train = train.model_copy(
        update={"epochs": -(-steps // loader.steps), "max_steps": steps, "checkpoint_every": steps}
    )
    torch.manual_seed(train.seed)
    detector = build(model, data.classes)
    began = time.perf_counter()
    with TemporaryDirectory() as folder:
        fit(Distillation(detector), loader, teacher=None, config=train, out=Path(folder), console=Console(quiet=True))
        rows = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    seconds = time.perf_counter() - began
    place(detector, train.device)
    metrics, _ = measure(detector, data, split, config, train, costs=False)
    return {
        "model": model.name,
        "images": len(split),
        "steps": steps,
        "AP": round(metrics["AP"], 2),
        "AP50": round(metrics["AP50"], 2),
        "seconds": round(seconds, 1),
        "loss": round(rows[-1]["total"], 4),
        "settings": {
            "model": model.model_dump(exclude_defaults=True),
            "train": train.model_dump(exclude_defaults=True),
        },
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="HEAD:BACKBONE")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--clip-norm", type=float, default=1.0)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--strides", type=lambda text: tuple(map(int, text.split(","))), help="none: the head's own")
    parser.add_argument("--queries", type=int, default=20)
    for name in ("encoder-layers", "decoder-layers"):
        parser.add_argument(f"--{name}", type=int, help="none: as published")
    parser.add_argument("--backbone-weights", default="none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--goal", type=float, default=90.0, help="AP that must be reached")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    torch.set_num_threads(options.threads)
    options.strides = options.strides or PYRAMIDS.get(split_name(options.model)[0], (8, 16, 32))
    fields = ("strides", "channels", "queries", "encoder_layers", "decoder_layers", "backbone_weights")
    model = ModelConfig(name=options.model, **{name: getattr(options, name) for name in fields})
    fields = ("batch_size", "lr", "weight_decay", "clip_norm", "seed", "device")
    train = TrainConfig(log_every=10, **{name: getattr(options, name) for name in fields})
    result = overfit(model, options.images, train, options.steps)
    text = json.dumps({**result, "goal": options.goal}, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0 if result["AP"] >= options.goal else 1


if __name__ == "__main__":
    sys.exit(main())
