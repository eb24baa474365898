"""LD: localisation distillation, between dense heads with side distributions. Zheng et al., CVPR 2022, arXiv:2102.12252.

    edges            w_e sum over positives of u T^2 KL,   KL: the mean over sides and bins of their softmax at T; u the student's best score
    valuable_edges   w_v sum over the valuable region of v T^2 KL
    class            w_c sum over levels of the mean over positives of T'^2 times the mean over classes of the KL of softmax scores

The valuable region is a ring around the positives (`geometry.valuable_region`). Weights go with these reductions, as published: with R bins
`weight_edges` weighs a side's plain KL by 1/(4R). Per head: `methods.presets`.

Code and paper. The paper's ring is gamma t <= DIoU <= t (`region: diou`); the published code divides the overlap by the anchor's own area
(`iof_compat`, the default) and takes for FCOS the points inside a box (`inside`). It weighs the ring by the IoU of anchor and box (`valuable:
overlap`), FCOS's by the student's best score (`score`); the paper means 0 and 1, says its author (`mask`). Its RetinaNet takes one softmax over the
bins of all sides (`softmax: joint`), and no positives into the ring (`exclude_positives`). It divides the edge terms by no count, so that
they grow with the objects a process sees (`normalizer: none`; `trust` divides by the sum of their weights, and needs larger ones). It
computes the class term in the ring too, and weighs it 0.

Ours: positives of a class the teacher does not know are left out of the class term. A single shared class makes it 0: its softmax is always 1.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from detdistill.distributed import mean_over_processes
from detdistill.geometry import ValuableRegion, valuable_region
from detdistill.losses import edge_kl, softmax_kl
from detdistill.methods.method import Method, Temperature, Weight, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.predictions import require_same_cells
from detdistill.types import (
    DetectorInfo,
    DetectorOutput,
    Layout,
    Need,
    Predictions,
    Pyramid,
    Targets,
    TrainState,
    required,
)


@dataclass(frozen=True)
class LDConfig:
    """weight_edges, weight_valuable, weight_class, weight_valuable_class: of the terms; a term of weight 0 is not computed. temperature,
    class_temperature: T and T'. gamma: lower end of the ring, in shares of its upper. The others: see the module's head."""

    weight_edges: Weight = 0.25
    weight_valuable: Weight = 0.0625
    weight_class: Weight = 10.0
    weight_valuable_class: Weight = 0.0
    temperature: Temperature = 10.0
    class_temperature: Temperature = 2.0
    softmax: Literal["side", "joint"] = "side"
    region: ValuableRegion = "iof_compat"
    gamma: Weight = 0.25
    valuable: Literal["overlap", "mask", "score"] = "overlap"
    exclude_positives: bool = False
    normalizer: Literal["none", "trust"] = "none"


class LD(Method):
    """See the module's head. Its terms: `edges`, `valuable_edges`, `class`, `valuable_class`."""

    name = "ld"
    group = "dense predictions"
    paper = "arXiv:2102.12252"
    reads = "side distributions (gfl; others with model.edges), class scores, boxes"
    gain = "GFL R50 40.1 to 42.1 (GFL R101)"
    Config = LDConfig

    def __init__(self, config: LDConfig, shared: SharedClasses):
        super().__init__()
        self.config, self.shared = config, shared
        self.need = self.student_need = Need(predictions=True)

    @classmethod
    def build(cls, config: LDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError unless both predict distributions of equal bins in the same cells, and share a class."""
        require_same_cells(cls.name, student, teacher)
        remedy = "take gfl, or retinanet, fcos or atss trained with --model.edges, on both sides"
        for side, info in (("student", student), ("teacher", teacher)):
            require(info.edges is not None, cls.name, f"the {side} ({info.kind}) has no distance distributions", remedy)
        bins = f"the distance distributions have {required(student.edges).bins} and {required(teacher.edges).bins} bins"
        require(student.edges == teacher.edges, cls.name, bins, "give both the same --model.edge-bins")
        points = f"distances are from other points in {student.kind} and {teacher.kind}"
        require(
            student.cell_anchors == teacher.cell_anchors,
            cls.name,
            points,
            "take a teacher of the student's kind, or use crosskd or pkd",
        )
        weighs = config.weight_edges + config.weight_valuable + config.weight_class + config.weight_valuable_class > 0
        require(weighs, cls.name, "all its weights are 0", "see the options of methods.ld")
        return cls(config, SharedClasses.between(cls.name, student, teacher))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        config = self.config
        mine, theirs = (
            self.shared.of_student(student_output.stages[-1]),
            self.shared.of_teacher(teacher_output.stages[-1]),
        )
        assignment = required(mine.assignment)
        score = mine.scores().detach().amax(-1)  # (B, N)
        ring = self._valuable(student_output.pyramids["neck"], mine, targets)
        known = self.shared.assigned(assignment, targets) >= 0
        weighed = score * (ring > 0) if config.valuable == "score" else ring
        parts = {
            "edges": (config.weight_edges, lambda: self._edges(mine, theirs, score * assignment.positive)),
            "valuable_edges": (config.weight_valuable, lambda: self._edges(mine, theirs, weighed)),
            "class": (config.weight_class, lambda: self._classes(mine, theirs, known)),
            "valuable_class": (config.weight_valuable_class, lambda: self._classes(mine, theirs, ring > 0)),
        }
        return {name: weight * part() for name, (weight, part) in parts.items() if weight}

    def _edges(self, guess: Predictions, taught: Predictions, weights: Tensor) -> Tensor:
        """The weighted sum over rows, (); weights (B, N)."""
        chosen = weights > 0
        mine, theirs = (required(side.edges)[chosen] for side in (guess, taught))  # (n, 4, R)
        if self.config.softmax == "joint":
            mine, theirs = mine.flatten(1)[:, None], theirs.flatten(1)[:, None]  # (n, 1, 4 R)
        rows = edge_kl(mine, theirs, self.config.temperature).sum(-1) / (
            4 * mine.shape[-1]
        )  # a quarter for `joint` too, as published
        total = (rows * weights[chosen]).sum()
        return total / mean_over_processes(weights.sum()) if self.config.normalizer == "trust" else total

    def _classes(self, guess: Predictions, taught: Predictions, chosen: Tensor) -> Tensor:
        """The sum over levels of the mean over the chosen rows, (); chosen (B, N) bool."""
        layout: Layout = required(guess.layout)
        counts = torch.stack([level.sum() for level in layout.split(chosen)]).float()  # (levels,)
        divisors = torch.cat(
            [count.expand(cells) for count, cells in zip(mean_over_processes(counts), layout.counts, strict=True)]
        )  # (N,)
        rows = (
            softmax_kl(guess.logits[chosen], taught.logits[chosen], self.config.class_temperature)
            / guess.logits.shape[-1]
        )
        return (rows / divisors.expand_as(chosen)[chosen]).sum()

    @torch.no_grad()
    def _valuable(self, pyramid: Pyramid, stage: Predictions, targets: Targets) -> Tensor:
        """(B, N): weights of the ring, 0 outside."""
        levels = [level.reshape(-1, 4) for level in required(pyramid.anchors)]
        counts = list(required(stage.layout).counts)
        weights = torch.zeros(stage.valid.shape, device=stage.valid.device)
        for row, inside, boxes in zip(
            weights, stage.valid, targets.boxes, strict=True
        ):  # each image has its own valid anchors
            kept = [level[mask] for level, mask in zip(levels, inside.split(counts), strict=True)]
            row[inside] = valuable_region(kept, boxes, self.config.gamma, self.config.region)
        if self.config.exclude_positives or self.config.region == "inside":
            weights[required(stage.assignment).positive] = 0
        return (weights > 0).float() if self.config.valuable == "mask" else weights
