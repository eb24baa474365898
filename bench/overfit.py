"""Train a detector on a few images and evaluate it on the same images. A low AP shows a fault in the detector.

    python bench/overfit.py --model gfl:resnet18 [--images 16] [--steps 400] [--batch-size 8] [--lr 1e-3]
                            [--channels 64] [--strides 8,16,32] [--neck pafpn] [--depthwise] [--queries 20]
                            [--decoder-layers 3] [--goal 90] [--json FILE]

If a detector cannot learn a few images by heart, its targets, its losses or its boxes are wrong.
The images are the built-in ones, 128 x 160, without augmentation. The weights are random, unless --backbone-weights
names others. The training loop is the one of `detdistill train`. The metric is COCO's AP (0..100).
The script prints one JSON object. The exit code is 1 if the AP is below the goal.
"""

import argparse
import json
import math
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
from detdistill.run.evaluating import measure
from detdistill.run.models import place

PUBLISHED_STRIDES = {name: record.strides for name, record in DETECTORS.items() if record.strides}
DEFAULT_STRIDES = (8, 16, 32)
STRIDES = PUBLISHED_STRIDES | {"faster_rcnn": (4, 8, 16, 32), "mask_rcnn": (4, 8, 16, 32)}


def overfit(model: ModelConfig, images: int, train: TrainConfig, steps: int) -> dict[str, Any]:
    """Train on `images` images for `steps` steps and evaluate on them. Returns AP, AP50, seconds and the last loss."""
    config = DataConfig(path=f"shapes:{max(images, 4)}", image_size=(HEIGHT, WIDTH), flip=0.0)
    data = open_data(config)
    split = data.split("train").take(images)
    loader = TrainLoader(split, config, batch_size=train.images_per_step, seed=train.seed)
    train = train.model_copy(
        update={"epochs": math.ceil(steps / loader.steps), "max_steps": steps, "checkpoint_every": steps}
    )
    torch.manual_seed(train.seed)
    detector = build(model, data.classes)
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        fit(Distillation(detector), loader, teacher=None, config=train, out=Path(folder), console=Console(quiet=True))
        rows = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    seconds = time.perf_counter() - start
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


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="HEAD:BACKBONE")
    parser.add_argument("--images", type=int, default=16, help="number of training images")
    parser.add_argument("--steps", type=int, default=400, help="number of training steps")
    parser.add_argument("--batch-size", type=int, default=8, help="images per step")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--clip-norm", type=float, default=1.0, help="largest norm of the gradient")
    parser.add_argument("--channels", type=int, default=64, help="width of the neck")
    parser.add_argument("--neck", choices=("fpn", "pafpn"), default="fpn", help="default: fpn")
    parser.add_argument("--depthwise", action="store_true", help="separable convolutions in neck and towers")
    parser.add_argument("--norm", choices=("default", "group", "none"), default="default", help="of the towers")
    parser.add_argument("--strides", type=parse_strides, help="such as 8,16,32; default: depends on the head")
    parser.add_argument("--queries", type=int, default=20, help="number of queries")
    for name in ("encoder-layers", "decoder-layers"):
        parser.add_argument(f"--{name}", type=int, help="default: as published")
    parser.add_argument("--backbone-weights", default="none", help="default: none, which means random weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--goal", type=float, default=90.0, help="the AP that must be reached, 0..100")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    return parser.parse_args()


def parse_strides(text: str) -> tuple[int, ...]:
    """`8,16,32` as (8, 16, 32)."""
    return tuple(int(stride) for stride in text.split(","))


def main() -> int:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    options.strides = options.strides or STRIDES.get(split_name(options.model)[0], DEFAULT_STRIDES)
    model_fields = ("strides", "channels", "neck", "depthwise", "norm", "queries", "encoder_layers", "decoder_layers")
    model_fields += ("backbone_weights",)
    model = ModelConfig(name=options.model, **{name: getattr(options, name) for name in model_fields})
    train_fields = ("batch_size", "lr", "weight_decay", "clip_norm", "seed", "device")
    train = TrainConfig(log_every=10, **{name: getattr(options, name) for name in train_fields})
    result = overfit(model, options.images, train, options.steps)
    text = json.dumps({**result, "goal": options.goal}, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0 if result["AP"] >= options.goal else 1


if __name__ == "__main__":
    sys.exit(main())
