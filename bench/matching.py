"""Measure the time of matching: all images and stages of a batch at once, against one image and one stage at a time.

    python bench/matching.py [--quick] [--repeats 5] [--threads N] [--device cpu] [--json FILE]

`queries`: the queries of each stage of a student's decoder are paired with the queries of the same stage of the
teacher, as in DETRDistill. The cost is the sum over classes of the binary cross-entropy + 5 L1 - 2 GIoU.
`batched` calls `losses.query_costs` for all stages and images, then `geometry.pair_all`: one transfer to the CPU, and
threads if the problems are large. `one_by_one` is a loop over stages and images: the same cost, a transfer, and
scipy's solver for each.

`targets`: ground truths are paired with the queries of all stages. Our `Matcher` is compared with the matcher of
transformers' Deformable DETR, which is called once per stage.

No detector runs. The teacher's boxes and logits are random. The student's are the teacher's in another order, with
noise that differs per stage. The two sides are measured alternately for several rounds; the first round is not counted.
Times are medians of wall-clock times, because the solvers use threads. A ratio is the median over rounds of
one_by_one / batched, so a value above 1 means that batching is faster. `same_pairs` is the fraction of queries for
which both sides found the same pair.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from losses import environment, settle
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher

from detdistill.detectors.queries.matching import Matcher
from detdistill.geometry import pair_all, to_pixels
from detdistill.losses import query_costs
from detdistill.types import Predictions, Targets

Milliseconds = dict[str, float]


@dataclass(frozen=True)
class Setting:
    """Sizes of the batch. boxes: ground truths per image."""

    stages: int = 6
    images: int = 8
    queries: int = 300
    classes: int = 80
    boxes: int = 20
    repeats: int = 5
    device: str = "cpu"


QUICK = Setting(stages=2, images=2, queries=40, classes=8, boxes=5, repeats=2)
SIDE = 640  # width and height of the padded batch in pixels


class Scenery:
    """Random predictions of a student and a teacher, and ground truths.

    student_logits, teacher_logits: (L, B, Q, K).
    student_boxes, teacher_boxes: (L, B, Q, 4), cx cy w h in 0..1 of the padded batch.
    target_boxes: (B, G, 4), in the same format. labels: (B, G).
    frame: (B, 2), (height, width) of the padded batch in pixels.
    stages, targets: the student's predictions and the ground truths as the types of the package, in pixels.
    """

    def __init__(self, setting: Setting):
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        stages, images, queries, classes = setting.stages, setting.images, setting.queries, setting.classes
        device = setting.device
        order = torch.randperm(queries, generator=generator)
        boxes = self._random_boxes(images, queries, generator)
        logits = 2 * normal(images, queries, classes) - 4
        self.teacher_boxes = (boxes + 0.01 * normal(stages, images, queries, 4)).clamp(0.01, 0.99).to(device)
        self.teacher_logits = (logits + normal(stages, images, queries, classes)).to(device)
        self.student_boxes = (boxes[:, order] + 0.05 * normal(stages, images, queries, 4)).clamp(0.01, 0.99).to(device)
        self.student_logits = (logits[:, order] + normal(stages, images, queries, classes)).to(device)
        self.frame = torch.tensor([[SIDE, SIDE]] * images, device=device)
        self.target_boxes = self._random_boxes(images, setting.boxes, generator).to(device)
        self.labels = torch.randint(classes, (images, setting.boxes), generator=generator).to(device)
        valid = torch.ones((images, queries), dtype=torch.bool, device=device)
        pixel_boxes = to_pixels(self.student_boxes, self.frame)
        self.stages = [
            Predictions(stage_logits, "sigmoid", stage_boxes, valid)
            for stage_logits, stage_boxes in zip(self.student_logits, pixel_boxes, strict=True)
        ]
        self.targets = Targets(tuple(to_pixels(self.target_boxes, self.frame)), tuple(self.labels))

    @staticmethod
    def _random_boxes(images: int, count: int, generator: torch.Generator) -> Tensor:
        """(images, count, 4): cx cy in 0.2..0.8, w h in 0.05..0.35."""
        uniform = torch.rand(images, count, 4, generator=generator)
        return torch.cat([0.2 + 0.6 * uniform[..., :2], 0.05 + 0.3 * uniform[..., 2:]], dim=-1)

    def costs(self, *index: int) -> Tensor:
        """The cost of every student query with every teacher query, (..., Q, Q).

        index: a stage, or a stage and an image. Without it, the costs of all stages and images.
        """
        return query_costs(
            self.student_logits[index],
            self.teacher_logits[index].sigmoid(),
            self.student_boxes[index],
            self.teacher_boxes[index],
        )


def timed(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """The time of one call in milliseconds, and its result."""
    settle(device)
    start = time.perf_counter()
    result = function()
    settle(device)
    return (time.perf_counter() - start) * 1000, result


def batched_queries(scenery: Scenery, device: torch.device) -> tuple[Milliseconds, Tensor]:
    """Pair all queries at once. Returns the time per part, and the teacher query of each student query (L, B, Q)."""
    cost_time, costs = timed(scenery.costs, device)
    solve_time, pairs = timed(lambda: pair_all(costs.flatten(0, 1)).view(costs.shape[:3]), device)
    return {"cost": cost_time, "solve": solve_time, "total": cost_time + solve_time}, pairs.cpu()


def single_queries(scenery: Scenery, device: torch.device) -> tuple[Milliseconds, Tensor]:
    """Pair the queries of one stage of one image at a time. Returns the same as `batched_queries`."""
    shape = scenery.student_logits.shape[:3]
    times, pairs = {"cost": 0.0, "solve": 0.0}, torch.full(shape, -1)
    for stage in range(shape[0]):
        for image in range(shape[1]):
            cost_time, costs = timed(lambda index=(stage, image): scenery.costs(*index), device)
            solve_time, (rows, columns) = timed(
                lambda costs=costs: linear_sum_assignment(costs.cpu().numpy()),
                device,
            )
            pairs[stage, image, rows] = torch.from_numpy(columns)
            times = {"cost": times["cost"] + cost_time, "solve": times["solve"] + solve_time}
    return {**times, "total": sum(times.values())}, pairs


def batched_targets(scenery: Scenery, device: torch.device) -> tuple[Milliseconds, Tensor]:
    """Match with our matcher. Returns the time, and the ground truth of each query (L, B, Q), -1 for none."""
    matcher = Matcher(2.0, 5.0, 2.0)
    total_time, assignments = timed(lambda: matcher(scenery.stages, scenery.frame, scenery.targets), device)
    return {"total": total_time}, torch.stack([assignment.matched for assignment in assignments]).cpu()


def single_targets(scenery: Scenery, device: torch.device) -> tuple[Milliseconds, Tensor]:
    """Match with the matcher of transformers, stage by stage. Returns the same as `batched_targets`."""
    matcher = DeformableDetrHungarianMatcher(class_cost=2.0, bbox_cost=5.0, giou_cost=2.0)
    targets = [
        {"class_labels": labels, "boxes": boxes}
        for labels, boxes in zip(scenery.labels, scenery.target_boxes, strict=True)
    ]

    def match_stages() -> list[Any]:
        return [
            matcher({"logits": logits, "pred_boxes": boxes}, targets)
            for logits, boxes in zip(scenery.student_logits, scenery.student_boxes, strict=True)
        ]

    total_time, matches = timed(match_stages, device)
    pairs = torch.full(scenery.student_logits.shape[:3], -1)
    for stage, images in enumerate(matches):
        for image, (rows, columns) in enumerate(images):
            pairs[stage, image, rows] = columns
    return {"total": total_time}, pairs


PIECES = {"queries": (batched_queries, single_queries), "targets": (batched_targets, single_targets)}


@torch.no_grad()
def measure(setting: Setting) -> dict[str, Any]:
    """For each piece: the median times of both sides in milliseconds, their ratios, and `same_pairs`."""
    scenery, device = Scenery(setting), torch.device(setting.device)
    rounds: dict[str, list[tuple[Milliseconds, Milliseconds]]] = {name: [] for name in PIECES}
    same_pairs = {}
    for number in range(setting.repeats + 1):
        for name, (batched, single) in PIECES.items():
            batched_times, batched_pairs = batched(scenery, device)
            single_times, single_pairs = single(scenery, device)
            same_pairs[name] = (batched_pairs == single_pairs).double().mean().item()
            if number > 0:  # the first round is not counted
                rounds[name].append((batched_times, single_times))
    return {name: {**summary(rounds[name]), "same_pairs": same_pairs[name]} for name in PIECES}


def summary(rounds: list[tuple[Mapping[str, float], Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians over the rounds of the two times (batched, one_by_one) and of their ratio."""
    parts = list(rounds[0][0])
    sides = {}
    for index, side in enumerate(("batched", "one_by_one")):
        sides[side] = {f"{part}_ms": round(statistics.median(row[index][part] for row in rounds), 2) for part in parts}
    ratios = {}
    for part in parts:
        ratio = statistics.median(single[part] / batched[part] for batched, single in rounds)
        ratios[part] = round(ratio, 2)
    return {**sides, "ratio": ratios}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 stages, 2 images, 40 queries, two rounds")
    parser.add_argument("--repeats", type=int, help="rounds that are counted")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; default: as set by the environment")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: cuda if there is one"
    )
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    base = QUICK if options.quick else Setting()
    setting = replace(base, device=options.device, repeats=options.repeats or base.repeats)
    result = measure(setting)
    result["environment"] = {**environment(setting), "cores": os.cpu_count()}
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
