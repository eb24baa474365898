"""Every detector with every method: does it build, train ten steps on one batch, stay finite and fall?

    python bench/conformance.py [--all] [--steps 10] [--detector gfl ...] [--method pkd ...] [--json FILE] [--markdown FILE]

A cell is a student, a teacher and a method: `yes`, the reason the method gives for refusing the pair, or what failed. The teacher is of the
student's kind on a larger backbone, or with --all of every kind; pairs of unlike backbones follow. Both have begun to learn the batch.
`gfl` and `atss edges` name detectors, the latter with `--model.edges`. Exit code 1 where a cell failed.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from detdistill.detectors.build import build
from detdistill.detectors.registry import DETECTORS, names
from detdistill.errors import UserError
from detdistill.methods import METHODS, by_group
from detdistill.recipe import ModelConfig
from detdistill.run.pairing import build_methods, resolve
from detdistill.testing import check_detector, check_pair, learn
from detdistill.types import Detector

CLASSES = ("disc", "square", "star")
PUBLISHED = {name: record.strides for name, record in DETECTORS.items() if record.strides}
STRIDES = PUBLISHED | {
    "faster_rcnn": (4, 8, 16, 32),
    "mask_rcnn": (4, 8, 16, 32),
    "deformable_detr": (8, 16, 32),
}  # others begin at 8
SETS = names("queries")
LAYERS = {"decoder_layers": 2}  # of set predictors, and one of the encoder
SMALL, LARGE = "mobilenetv2_035", "resnet18"
EDGES = tuple(f"{head} edges" for head in ("retinanet", "fcos", "atss"))
HEADS = (*DETECTORS, *EDGES)
UNLIKE = {  # student, teacher: methods
    ("retinanet:resnet18", "faster_rcnn:resnet50"): ("pkd", "mgd", "fgd"),
    ("gfl:resnet18", "gfl:swin_tiny_patch4_window7_224"): ("pkd", "crosskd", "ld"),
    ("retinanet:mobilenetv2_100", "retinanet:resnet50"): ("pkd", "crosskd", "cwd"),
    ("fcos:mobilenetv2_100", "gfl:convnext_atto"): ("pkd", "crosskd", "mimicking"),
    ("retinanet:resnet18", "fcos:regnety_002"): ("pkd", "crosskd", "fgfi"),
    ("deformable_detr:mobilenetv2_100", "gfl:resnet18"): (
        "pkd",
        "reviewkd",
        "mgd",
        "fgd",
        "cwd",
        "fgfi",
        "token_alignment",
    ),
    ("gfl:mobilenetv2_100", "rt_detr:resnet18"): ("pkd", "reviewkd", "mgd", "fgd", "cwd", "fgfi"),
    ("rt_detr:mobilenetv2_100", "faster_rcnn:resnet18"): ("pkd", "fgfi", "token_alignment"),
    ("detr:mobilenetv2_100", "fcos:resnet18"): ("pkd", "fgd"),
    ("conditional_detr:mobilenetv2_100", "deformable_detr:resnet18"): ("detrdistill", "kddetr"),
    ("deformable_detr:mobilenetv2_100", "detr:resnet18"): ("detrdistill", "kddetr", "clockdistill"),
    ("rt_detr:mobilenetv2_100", "d_fine:resnet18"): ("kddetr", "clockdistill"),
}
LESSONS, LESSON_LR = 20, 1e-3  # steps and rate of what both learn of the batch before
PATIENCE = 3  # times as many steps, before and then, for heads with queries, whose boxes move more


@dataclass(frozen=True)
class Cell:
    """One student, teacher and method. state: `yes`, `refused` or `failed`, with the reason. first, last: sum of the method's terms."""

    student: str
    teacher: str
    method: str
    state: str
    reason: str = ""
    first: float | None = None
    last: float | None = None
    seconds: float = 0.0


def tiny(name: str, backbone: str, seed: int) -> Detector:
    """A detector small enough for a step in a tenth of a second. name: HEAD, `HEAD edges`, or HEAD:BACKBONE."""
    torch.manual_seed(seed)
    head, _, body = name.removesuffix(" edges").partition(":")
    strides = STRIDES.get(head, (8, 16, 32))
    config = ModelConfig(
        name=f"{head}:{body or backbone}",
        strides=strides,
        channels=32,
        tower_depth=2,
        edges=name.endswith(" edges"),
        queries=20,
        backbone_weights="none",
        **({} if head not in SETS else LAYERS if head == "adamixer" else {**LAYERS, "encoder_layers": 1}),
    )
    return build(config, CLASSES)


@cache
def begun(head: str, backbone: str, seed: int) -> Detector:
    """A detector that has begun to learn the batch: as a teacher it says something, and as a student its own loss falls from here on. GFL's
    rises at first, as its targets are the overlaps of its own boxes; heads with queries, whose boxes move more, take longer."""
    detector = tiny(head, backbone, seed)
    learn(detector, None, [], steps=LESSONS * patience(head), lr=LESSON_LR)
    return detector


def patience(head: str) -> int:
    return PATIENCE if head.partition(":")[0] in SETS else 1


def cell(head: str, teacher_head: str, method: str, steps: int) -> Cell:
    """The state of one cell."""
    began = time.perf_counter()
    names = (head, teacher_head, method)
    student, teacher = begun(head, SMALL, 0), begun(teacher_head, LARGE, 1)
    torch.manual_seed(0)
    try:
        methods = build_methods(resolve({method: {}}, student.info, teacher.info), student.info, teacher.info)
    except UserError as error:
        return Cell(*names, "refused", str(error))
    try:
        first, last = check_pair(student, teacher, methods, steps=steps * patience(head))[method]
    except Exception as error:  # whatever it is, the table goes on and tells it
        return Cell(*names, "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return Cell(*names, "yes", "", first, last, time.perf_counter() - began)


def cells(heads: Sequence[str], methods: Sequence[str], every: bool, steps: int) -> Iterator[Cell]:
    """Each detector alone first, then with every method; teachers of its own kind or of every kind."""
    for head in heads:
        try:
            check_detector(tiny(head, SMALL, seed=0))
            yield Cell(head, "", "check_detector", "yes")
        except AssertionError as error:
            yield Cell(head, "", "check_detector", "failed", str(error))
    for head in heads:
        for teacher in DETECTORS if every and head in DETECTORS else (head,):
            for method in methods:
                yield cell(head, teacher, method, steps)
    for (student, teacher), own in UNLIKE.items():
        for method in own:
            if method in methods and student.partition(":")[0] in heads:
                yield cell(student, teacher, method, steps)


def markdown(found: Sequence[Cell]) -> str:
    """A table a family of methods: rows are students with their teachers, columns methods; reasons below the last."""
    by_place = {(one.student, one.teacher, one.method): one for one in found}
    pairs = [
        pair for pair in dict.fromkeys((one.student, one.teacher) for one in found if one.teacher) if pair not in UNLIKE
    ]
    unlike = [pair for pair in dict.fromkeys((one.student, one.teacher) for one in found) if pair in UNLIKE]
    notes: dict[str, int] = {}

    def text(pair: tuple[str, str], method: str) -> str:
        one = by_place.get((*pair, method))
        if one is None or one.state == "yes":
            return "" if one is None else "yes"
        return f"{'no' if one.state == 'refused' else 'FAILED'} [{notes.setdefault(one.reason, len(notes) + 1)}]"

    lines: list[str] = []
    for title, family in by_group().items():
        methods = [method.name for method in family if any(one.method == method.name for one in found)]
        if methods:
            lines += [
                f"## {title[:1].upper()}{title[1:]}",
                "",
                f"| student | teacher | {' | '.join(methods)} |",
                "|---|---|" + "---|" * len(methods),
            ]
            lines += [f"| {' | '.join((*pair, *(text(pair, method) for method in methods)))} |" for pair in pairs] + [
                ""
            ]
    if unlike:
        lines += ["## Unlike backbones and heads", "", "| student | teacher | methods |", "|---|---|---|"]
        for pair in unlike:
            told = ", ".join(f"{method} {text(pair, method)}" for method in UNLIKE[pair] if (*pair, method) in by_place)
            lines.append(f"| {' | '.join(pair)} | {told} |")
        lines.append("")
    broken = [
        f"{one.student}: {one.reason}" for one in found if one.method == "check_detector" and one.state == "failed"
    ]
    reasons = ["## Reasons", "", *(f"{number}. {reason}" for reason, number in notes.items())] if notes else []
    return "\n".join([*lines, *reasons, *broken]) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every student with every teacher")
    parser.add_argument("--detector", nargs="+", choices=HEADS, default=list(HEADS), help="students")
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    torch.set_num_threads(options.threads)
    found: list[Cell] = []
    for one in cells(options.detector, options.method, options.all, options.steps):
        found.append(one)
        moved = "" if one.first is None else f"{one.first:.3g} to {one.last:.3g}"
        print(f"{one.student:16} {one.teacher:16} {one.method:14} {one.state:8} {moved}{one.reason}", flush=True)
    failed = [one for one in found if one.state == "failed"]
    if options.json:
        result: dict[str, Any] = {"rows": [asdict(one) for one in found], "failed": len(failed), "steps": options.steps}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.markdown:
        options.markdown.write_text(markdown(found))
    states = ", ".join(f"{sum(one.state == state for one in found)} {state}" for state in ("yes", "refused", "failed"))
    print(f"{len(found)} cells: {states}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
