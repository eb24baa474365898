"""What matching costs: everything of a batch at once, against one image and one stage at a time.

    python bench/matching.py [--quick] [--repeats 5] [--threads N] [--device cpu] [--json FILE]

`queries`: each stage of a student's decoder to the teacher's same stage, query to query, as DETRDistill does: the sum over classes of binary cross-entropies
+ 5 L1 - 2 GIoU. `batched` is `losses.query_costs` on all stages and images, then `geometry.pair_all`: one transfer, threads where problems are large.
`one_by_one` is the same cost of one stage of one image, its transfer and scipy's solver, in a loop.

`targets`: ground truths to queries, all stages: our `Matcher` against the matcher of transformers' Deformable DETR, called stage by stage.

Nothing is predicted: the teacher's boxes and scores are drawn, the student's are the teacher's in another order and with noise, other noise in each
stage. The sides take turns, round after round; the first round does not count. Times are medians, on the wall's clock as solvers run in threads; a
ratio is the median over rounds of one_by_one / batched, so that above 1 batching pays. `same_pairs`: that both found the same, and in what share of rows.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from losses import environment, settle
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher

from detdistill.detectors.queries.frames import to_pixels
from detdistill.detectors.queries.matching import Matcher
from detdistill.geometry import pair_all
from detdistill.losses import query_costs
from detdistill.types import Predictions, Targets


@dataclass(frozen=True)
class Setting:
    """Sizes. boxes: ground truths an image."""

    stages: int = 6
    images: int = 8
    queries: int = 300
    classes: int = 80
    boxes: int = 20
    repeats: int = 5
    device: str = "cpu"


QUICK = Setting(stages=2, images=2, queries=40, classes=8, boxes=5, repeats=2)
SIDE = 640  # pixels of the padded batch


class Scenery:
    """logits (L, B, Q, K), boxes (L, B, Q, 4), cx cy w h in 0..1, of student and teacher; and ground truth."""

    def __init__(self, setting: Setting):
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        stages, images, queries, classes = setting.stages, setting.images, setting.queries, setting.classes
        order = torch.randperm(queries, generator=generator)
        boxes, logits = self._boxes(images, queries, generator), 2 * normal(images, queries, classes) - 4
        self.teacher_boxes = (boxes + 0.01 * normal(stages, images, queries, 4)).clamp(0.01, 0.99).to(setting.device)
        self.teacher_logits = (logits + normal(stages, images, queries, classes)).to(setting.device)
        self.boxes = (boxes[:, order] + 0.05 * normal(stages, images, queries, 4)).clamp(0.01, 0.99).to(setting.device)
        self.logits = (logits[:, order] + normal(stages, images, queries, classes)).to(setting.device)
        self.frame = torch.tensor([[SIDE, SIDE]] * images, device=setting.device)
        self.truths = self._boxes(images, setting.boxes, generator).to(setting.device)
        self.labels = torch.randint(classes, (images, setting.boxes), generator=generator).to(setting.device)
        valid = torch.ones((images, queries), dtype=torch.bool, device=setting.device)
        pairs = zip(self.logits, to_pixels(self.boxes, self.frame), strict=True)
        self.stages = [Predictions(own, "sigmoid", box, valid) for own, box in pairs]
        self.targets = Targets(tuple(to_pixels(self.truths, self.frame)), tuple(self.labels))

    @staticmethod
    def _boxes(images: int, count: int, generator: torch.Generator) -> Tensor:
        drawn = torch.rand(images, count, 4, generator=generator)
        return torch.cat([0.2 + 0.6 * drawn[..., :2], 0.05 + 0.3 * drawn[..., 2:]], dim=-1)

    def costs(self, *place: int) -> Tensor:
        """Of every student query to every teacher query: of all, or of the stage and image at `place`."""
        teacher = self.teacher_logits[place].sigmoid()
        return query_costs(self.logits[place], teacher, self.boxes[place], self.teacher_boxes[place])


def clocked(piece: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Milliseconds, and what it gives."""
    settle(device)
    begin = time.perf_counter()
    made = piece()
    settle(device)
    return (time.perf_counter() - begin) * 1000, made


def batched_queries(scenery: Scenery, device: torch.device) -> tuple[dict[str, float], Tensor]:
    """Milliseconds by part, and the pairs (L, B, Q)."""
    cost, table = clocked(scenery.costs, device)
    solve, pairs = clocked(lambda: pair_all(table.flatten(0, 1)).view(table.shape[:3]), device)
    return {"cost": cost, "solve": solve, "total": cost + solve}, pairs.cpu()


def single_queries(scenery: Scenery, device: torch.device) -> tuple[dict[str, float], Tensor]:
    """The same, a stage of an image at a time."""
    shape = scenery.logits.shape[:3]
    spent, pairs = {"cost": 0.0, "solve": 0.0}, torch.full(shape, -1)
    for stage in range(shape[0]):
        for image in range(shape[1]):
            cost, table = clocked(lambda place=(stage, image): scenery.costs(*place), device)
            solve, (rows, columns) = clocked(lambda table=table: linear_sum_assignment(table.cpu().numpy()), device)
            pairs[stage, image, rows] = torch.from_numpy(columns)
            spent = {"cost": spent["cost"] + cost, "solve": spent["solve"] + solve}
    return {**spent, "total": sum(spent.values())}, pairs


def batched_targets(scenery: Scenery, device: torch.device) -> tuple[dict[str, float], Tensor]:
    """Our matcher: milliseconds, and the ground truth of each query (L, B, Q), -1 for none."""
    spent, found = clocked(lambda: Matcher(2.0, 5.0, 2.0)(scenery.stages, scenery.frame, scenery.targets), device)
    return {"total": spent}, torch.stack([own.matched for own in found]).cpu()


def single_targets(scenery: Scenery, device: torch.device) -> tuple[dict[str, float], Tensor]:
    """The host's."""
    match = DeformableDetrHungarianMatcher(class_cost=2.0, bbox_cost=5.0, giou_cost=2.0)
    targets = [{"class_labels": own, "boxes": boxes} for own, boxes in zip(scenery.labels, scenery.truths, strict=True)]

    def stages() -> list[Any]:
        return [
            match({"logits": logits, "pred_boxes": boxes}, targets)
            for logits, boxes in zip(scenery.logits, scenery.boxes, strict=True)
        ]

    spent, found = clocked(stages, device)
    pairs = torch.full(scenery.logits.shape[:3], -1)
    for stage, images in enumerate(found):
        for image, (rows, columns) in enumerate(images):
            pairs[stage, image, rows] = columns
    return {"total": spent}, pairs


PIECES = {"queries": (batched_queries, single_queries), "targets": (batched_targets, single_targets)}


@torch.no_grad()
def measure(setting: Setting) -> dict[str, Any]:
    """By piece: medians in milliseconds of both sides, ratios, and the share of rows in which they agree."""
    scenery, device = Scenery(setting), torch.device(setting.device)
    rounds: dict[str, list[tuple[Mapping[str, float], Mapping[str, float]]]] = {name: [] for name in PIECES}
    same = {}
    for number in range(setting.repeats + 1):
        for name, (batched, single) in PIECES.items():
            (first, pairs), (second, others) = batched(scenery, device), single(scenery, device)
            same[name] = (pairs == others).double().mean().item()
            if number:  # the first round does not count
                rounds[name].append((first, second))
    return {name: {**summary(rounds[name]), "same_pairs": same[name]} for name in PIECES}


def summary(rounds: list[tuple[Mapping[str, float], Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians over rounds of (batched, one_by_one) and of their ratios."""
    parts = list(rounds[0][0])
    sides = {
        side: {f"{part}_ms": round(statistics.median(row[index][part] for row in rounds), 2) for part in parts}
        for index, side in enumerate(("batched", "one_by_one"))
    }
    ratios = {
        part: round(statistics.median(single[part] / batched[part] for batched, single in rounds), 2) for part in parts
    }
    return {**sides, "ratio": ratios}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 stages, 2 images, 40 queries, two rounds")
    parser.add_argument("--repeats", type=int, help="rounds that count")
    parser.add_argument("--threads", type=int, help="torch's; default: as the environment says")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write there too")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    base = QUICK if options.quick else Setting()
    setting = replace(base, device=options.device, repeats=options.repeats or base.repeats)
    result = measure(setting)
    result["environment"] = {**environment(setting), **asdict(setting), "cores": os.cpu_count()}
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
