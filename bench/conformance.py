"""Test every detector with every method: in ten steps on one batch, are the loss terms finite, and do they fall?

    python bench/conformance.py [--all] [--steps 10] [--detector gfl ...] [--method pkd ...] [--json FILE]
                                [--markdown FILE]

A cell of the table is a student, a teacher and a method. Its state is `yes`, `refused` with the reason why the method
cannot serve the pair, or `failed` with the error. The teacher has the same head as the student and a larger backbone.
With --all, each student is tested with teachers of every head. Pairs of different heads and backbones follow.
Student and teacher are first trained for a few steps on the batch, on the labels only.
`gfl` and `atss edges` name detectors; `atss edges` is an ATSS with `--model.edges`, `atss depthwise` one with
`--model.depthwise --model.neck pafpn`, whose teacher has plain convolutions.
The exit code is 1 if a cell failed.
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
PUBLISHED_STRIDES = {name: record.strides for name, record in DETECTORS.items() if record.strides}
DEFAULT_STRIDES = (8, 16, 32)
STRIDES = PUBLISHED_STRIDES | {
    "faster_rcnn": (4, 8, 16, 32),
    "mask_rcnn": (4, 8, 16, 32),
    "deformable_detr": (8, 16, 32),
}
QUERY_HEADS = names("queries")
SMALL, LARGE = "mobilenetv2_035", "resnet18"  # backbones of student and teacher
EDGES = tuple(f"{head} edges" for head in ("retinanet", "fcos", "atss"))
DEPTHWISE = tuple(f"{head} depthwise" for head in names("dense"))
HEADS = (*DETECTORS, *EDGES, *DEPTHWISE)
VARIANTS: dict[str, dict[str, Any]] = {"edges": {"edges": True}, "depthwise": {"depthwise": True, "neck": "pafpn"}}
UNLIKE_PAIRS = {  # (student, teacher): methods to test
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
INITIAL_STEPS, INITIAL_LR = 20, 1e-3  # of the training on the labels before a cell is tested
QUERY_STEPS_FACTOR = 3  # heads with queries get this many times as many steps, because their boxes move more


@dataclass(frozen=True)
class Cell:
    """The result for one student, teacher and method.

    state: `yes`, `refused` or `failed`.
    reason: why the method refused the pair, or what failed.
    first, last: the sum of the method's terms before the first step and after the last step.
    seconds: time to build and train the pair.
    """

    student: str
    teacher: str
    method: str
    state: str
    reason: str = ""
    first: float | None = None
    last: float | None = None
    seconds: float = 0.0


def tiny(name: str, default_backbone: str, seed: int) -> Detector:
    """A detector that is small enough for a step in a tenth of a second.

    name: HEAD, HEAD:BACKBONE, or HEAD and a key of VARIANTS.
    """
    torch.manual_seed(seed)
    name, _, variant = name.partition(" ")
    head, _, backbone = name.partition(":")
    layers = {}
    if head in QUERY_HEADS:
        layers["decoder_layers"] = 2
        if head != "adamixer":
            layers["encoder_layers"] = 1
    config = ModelConfig(
        name=f"{head}:{backbone or default_backbone}",
        strides=STRIDES.get(head, DEFAULT_STRIDES),
        channels=32,
        tower_depth=2,
        queries=20,
        backbone_weights="none",
        **layers,
        **VARIANTS.get(variant, {}),
    )
    return build(config, CLASSES)


@cache
def trained(name: str, default_backbone: str, seed: int) -> Detector:
    """The tiny detector after a short training on the labels of the batch.

    A teacher without it has no useful predictions. A student without it may have task losses that rise: the targets of
    GFL are the overlaps of its own boxes, and the losses of heads with queries need longer to fall.
    """
    detector = tiny(name, default_backbone, seed)
    learn(detector, None, [], steps=INITIAL_STEPS * steps_factor(name), lr=INITIAL_LR)
    return detector


def steps_factor(name: str) -> int:
    """The factor by which the number of steps is multiplied for this detector."""
    return QUERY_STEPS_FACTOR if name.partition(":")[0] in QUERY_HEADS else 1


def run_cell(student_name: str, teacher_name: str, method: str, steps: int) -> Cell:
    """Train the pair with the method and return the cell."""
    start = time.perf_counter()
    student, teacher = trained(student_name, SMALL, 0), trained(teacher_name, LARGE, 1)
    torch.manual_seed(0)
    try:
        methods = build_methods(resolve({method: {}}, student.info, teacher.info), student.info, teacher.info)
    except UserError as error:
        return Cell(student_name, teacher_name, method, "refused", str(error))
    try:
        first, last = check_pair(student, teacher, methods, steps=steps * steps_factor(student_name))[method]
    except Exception as error:  # one failing cell must not stop the other cells
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return Cell(student_name, teacher_name, method, "failed", reason)
    return Cell(student_name, teacher_name, method, "yes", "", first, last, time.perf_counter() - start)


def run_cells(heads: Sequence[str], methods: Sequence[str], all_teachers: bool, steps: int) -> Iterator[Cell]:
    """`check_detector` on each detector first; then each student with each method; then the pairs of UNLIKE_PAIRS.

    all_teachers: False tests a student only with a teacher of the same head. The teacher of a separable student has
    plain convolutions.
    """
    for head in heads:
        try:
            check_detector(tiny(head, SMALL, seed=0))
            yield Cell(head, "", "check_detector", "yes")
        except AssertionError as error:
            yield Cell(head, "", "check_detector", "failed", str(error))
    for head in heads:
        for teacher in DETECTORS if all_teachers and head in DETECTORS else (head.removesuffix(" depthwise"),):
            for method in methods:
                yield run_cell(head, teacher, method, steps)
    for (student, teacher), pair_methods in UNLIKE_PAIRS.items():
        for method in pair_methods:
            if method in methods and student.partition(":")[0] in heads:
                yield run_cell(student, teacher, method, steps)


class Report:
    """The cells as markdown tables. Reasons are numbered and listed once, at the end."""

    def __init__(self, cells: Sequence[Cell]):
        self.cells = cells
        self.cell_of = {(cell.student, cell.teacher, cell.method): cell for cell in cells}
        pairs = dict.fromkeys((cell.student, cell.teacher) for cell in cells if cell.teacher)
        self.pairs = [pair for pair in pairs if pair not in UNLIKE_PAIRS]
        self.unlike_pairs = [pair for pair in pairs if pair in UNLIKE_PAIRS]
        self.reasons: dict[str, int] = {}

    def markdown(self) -> str:
        """One table per group of methods (rows: pairs; columns: methods), the unlike pairs, and the reasons."""
        lines = [*self.group_tables(), *self.unlike_table()]
        if self.reasons:
            lines += ["## Reasons", "", *(f"{number}. {reason}" for reason, number in self.reasons.items())]
        for cell in self.cells:
            if cell.method == "check_detector" and cell.state == "failed":
                lines.append(f"{cell.student}: {cell.reason}")
        return "\n".join(lines) + "\n"

    def group_tables(self) -> list[str]:
        lines: list[str] = []
        for title, group in by_group().items():
            methods = [method.name for method in group if any(cell.method == method.name for cell in self.cells)]
            if methods:
                lines += [f"## {title[:1].upper()}{title[1:]}", ""]
                lines += [f"| student | teacher | {' | '.join(methods)} |", "|---|---|" + "---|" * len(methods)]
                for pair in self.pairs:
                    states = [self.text(pair, method) for method in methods]
                    lines.append(f"| {' | '.join((*pair, *states))} |")
                lines.append("")
        return lines

    def unlike_table(self) -> list[str]:
        if not self.unlike_pairs:
            return []
        lines = ["## Unlike backbones and heads", "", "| student | teacher | methods |", "|---|---|---|"]
        for pair in self.unlike_pairs:
            methods = [method for method in UNLIKE_PAIRS[pair] if (*pair, method) in self.cell_of]
            states = ", ".join(f"{method} {self.text(pair, method)}" for method in methods)
            lines.append(f"| {' | '.join(pair)} | {states} |")
        return [*lines, ""]

    def text(self, pair: tuple[str, str], method: str) -> str:
        """`yes`, `no [number of the reason]`, `FAILED [number of the reason]`, or "" if the cell was not tested."""
        cell = self.cell_of.get((*pair, method))
        if cell is None or cell.state == "yes":
            return "" if cell is None else "yes"
        number = self.reasons.setdefault(cell.reason, len(self.reasons) + 1)
        return f"{'no' if cell.state == 'refused' else 'FAILED'} [{number}]"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="test every student with every teacher")
    parser.add_argument("--detector", nargs="+", choices=HEADS, default=list(HEADS), help="students; default: all")
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=list(METHODS), help="default: all")
    parser.add_argument("--steps", type=int, default=10, help="training steps per cell; heads with queries get 3 times")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--json", type=Path, help="write the cells to this file")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    cells: list[Cell] = []
    for cell in run_cells(options.detector, options.method, options.all, options.steps):
        cells.append(cell)
        change = "" if cell.first is None else f"{cell.first:.3g} to {cell.last:.3g}"
        name = f"{cell.student:16} {cell.teacher:16} {cell.method:14}"
        print(f"{name} {cell.state:8} {change}{cell.reason}", flush=True)
    counts = {state: sum(cell.state == state for cell in cells) for state in ("yes", "refused", "failed")}
    if options.json:
        result: dict[str, Any] = {
            "rows": [asdict(cell) for cell in cells],
            "failed": counts["failed"],
            "steps": options.steps,
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.markdown:
        options.markdown.write_text(Report(cells).markdown())
    print(f"{len(cells)} cells: {', '.join(f'{count} {state}' for state, count in counts.items())}")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
