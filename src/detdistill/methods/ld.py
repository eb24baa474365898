"""LD: localization distillation between dense heads with side distributions. Zheng et al., CVPR 2022, arXiv:2102.12252.

    edges            w_e sum over positives of u T^2 KL
    valuable_edges   w_v sum over the valuable region of v T^2 KL
    class            w_c sum over levels of the mean over positives of T'^2 KL_c
    valuable_class   w_vc sum over levels of the mean over the valuable region of T'^2 KL_c

KL is the mean over sides and bins of the KL of the softmax at T. KL_c is the mean over classes of the KL of the softmax
scores at T'. u is the student's best score, v the weight of a row in the region.

The valuable region is a ring around the positives (`geometry.valuable_region`). The default weights belong to these
reductions, as published: with R bins, `weight_edges` multiplies the plain KL of a side by 1 / (4 R). Weights per
detector: `methods.presets`.

Paper and published code:
- The ring of the paper is gamma t <= DIoU <= t, where t is ATSS's threshold (`region: diou`). The code uses the overlap
  divided by the area of the anchor instead of the IoU (`iof_compat`, the default). For FCOS it uses the points inside a
  box (`inside`).
- The code weights a row of the ring by the IoU of anchor and box (`valuable: overlap`), and for FCOS by the student's
  best score (`score`). According to the author, the weights of the paper are 0 and 1 (`mask`).
- For RetinaNet the code takes one softmax over the bins of all sides (`softmax: joint`) and leaves the positives out of
  the ring (`exclude_positives`).
- The code does not divide the edge terms by a count, so they grow with the number of objects in a process
  (`normalizer: none`). `normalizer: trust` divides each edge term by its sum of u or v, and needs larger weights.
- The code computes the class term in the ring too, with a weight of 0 (`valuable_class`).

We leave positives of a class that the teacher does not have out of the class term. With a single shared class the class
term is 0, because its softmax is always 1.
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
    """Options of LD. A term of weight 0 is not computed.

    weight_edges, weight_valuable, weight_class, weight_valuable_class: weights of the four terms.
    temperature, class_temperature: T and T'.
    gamma: lower bound of the ring, as a fraction of its upper bound.
    softmax: `side`: one softmax per side; `joint`: one over the bins of all sides, as published for RetinaNet.
    region: the rule of the valuable region, a ring around the positives. `iof_compat`: overlap divided by the anchor's
        area, as in the code; `diou`: DIoU, as in the paper; `inside`: points inside a box, as in the code for FCOS.
    valuable: the weight of a row of the ring. `overlap`: IoU of anchor and box; `score`: the student's best score;
        `mask`: 1.
    exclude_positives: leave the positives out of the ring.
    normalizer: `none`: the edge terms are plain sums; `trust`: each is divided by the sum of its row weights.
    """

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
    """See the module docstring. Terms: `edges`, `valuable_edges`, `class`, `valuable_class`."""

    name = "ld"
    group = "dense predictions"
    paper = "arXiv:2102.12252"
    copies = "the teacher's distributions of side distances, and its classes on positives"
    requires = "dense heads with the same cells and anchors; `gfl`, or `--model.edges` on both sides"
    reads = "side distributions (gfl; others with model.edges), class scores, boxes"
    gain = "GFL R50 40.1 to 42.1 (GFL R101)"
    Config = LDConfig

    def __init__(self, config: LDConfig, shared: SharedClasses):
        super().__init__()
        self.config, self.shared = config, shared
        self.need = self.student_need = Need(predictions=True)

    @classmethod
    def build(cls, config: LDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError unless both predict distributions with equal bins in the same cells, and share a class."""
        require_same_cells(cls.name, student, teacher)
        remedy = "use gfl, or retinanet, fcos or atss trained with --model.edges, on both sides"
        for side, info in (("student", student), ("teacher", teacher)):
            require(info.edges is not None, cls.name, f"the {side} ({info.kind}) has no distance distributions", remedy)
        bins = f"the distance distributions have {required(student.edges).bins} and {required(teacher.edges).bins} bins"
        require(student.edges == teacher.edges, cls.name, bins, "give both the same --model.edge-bins")
        points = f"{student.kind} and {teacher.kind} measure distances from different points"
        remedy = "use a teacher of the student's kind, or use crosskd or pkd"
        require(student.cell_anchors == teacher.cell_anchors, cls.name, points, remedy)
        weights = config.weight_edges + config.weight_valuable + config.weight_class + config.weight_valuable_class
        require(weights > 0, cls.name, "all its weights are 0", "see the options of methods.ld")
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
        student_predictions = self.shared.of_student(student_output.stages[-1])
        teacher_predictions = self.shared.of_teacher(teacher_output.stages[-1])
        assignment = required(student_predictions.assignment)
        score = student_predictions.scores().detach().amax(-1)  # (B, N, K) -> (B, N)
        ring = self._valuable(student_output.pyramids["neck"], student_predictions, targets)  # (B, N)
        in_ring = ring > 0
        has_shared_class = self.shared.assigned(assignment, targets) >= 0  # (B, N)
        ring_weights = score * in_ring if config.valuable == "score" else ring

        def edges(weights: Tensor) -> Tensor:
            return self._edges(student_predictions, teacher_predictions, weights)

        def classes(chosen: Tensor) -> Tensor:
            return self._classes(student_predictions, teacher_predictions, chosen)

        parts = {
            "edges": (config.weight_edges, lambda: edges(score * assignment.positive)),
            "valuable_edges": (config.weight_valuable, lambda: edges(ring_weights)),
            "class": (config.weight_class, lambda: classes(has_shared_class)),
            "valuable_class": (config.weight_valuable_class, lambda: classes(in_ring)),
        }
        return {name: weight * part() for name, (weight, part) in parts.items() if weight}

    def _edges(self, student_predictions: Predictions, teacher_predictions: Predictions, weights: Tensor) -> Tensor:
        """The weighted sum over rows of T^2 KL, (). weights (B, N): rows of weight 0 are left out."""
        chosen = weights > 0
        student_edges = required(student_predictions.edges)[chosen]  # (B, N, 4, R) -> (n, 4, R)
        teacher_edges = required(teacher_predictions.edges)[chosen]
        if self.config.softmax == "joint":
            student_edges = student_edges.flatten(1)[:, None]  # (n, 4, R) -> (n, 1, 4 R)
            teacher_edges = teacher_edges.flatten(1)[:, None]
        bins = student_edges.shape[-1]
        rows = edge_kl(student_edges, teacher_edges, self.config.temperature).sum(-1)  # (n, sides) -> (n,)
        rows = rows / (4 * bins)  # divided by 4 for `joint` too, as published
        total = (rows * weights[chosen]).sum()
        return total / mean_over_processes(weights.sum()) if self.config.normalizer == "trust" else total

    def _classes(self, student_predictions: Predictions, teacher_predictions: Predictions, chosen: Tensor) -> Tensor:
        """The sum over levels of the mean over the chosen rows, (). chosen: (B, N) bool."""
        layout: Layout = required(student_predictions.layout)
        counts = torch.stack([level.sum() for level in layout.split(chosen)]).float()  # (levels,)
        level_divisors = mean_over_processes(counts)  # (levels,)
        divisors = torch.cat(
            [divisor.expand(rows) for divisor, rows in zip(level_divisors, layout.counts, strict=True)]
        )  # (levels,) -> (N,)
        student_logits = student_predictions.logits[chosen]  # (B, N, K) -> (n, K)
        teacher_logits = teacher_predictions.logits[chosen]
        classes = student_logits.shape[-1]
        rows = softmax_kl(student_logits, teacher_logits, self.config.class_temperature) / classes  # (n, K) -> (n,)
        return (rows / divisors.expand_as(chosen)[chosen]).sum()  # divisors (N,) -> (B, N) -> (n,)

    @torch.no_grad()
    def _valuable(self, pyramid: Pyramid, predictions: Predictions, targets: Targets) -> Tensor:
        """Weights of the rows in the ring, 0 outside, (B, N)."""
        levels = [level.reshape(-1, 4) for level in required(pyramid.anchors)]  # each (H, W, A, 4) -> (H W A, 4)
        counts = list(required(predictions.layout).counts)
        weights = torch.zeros(predictions.valid.shape, device=predictions.valid.device)  # (B, N)
        for image_weights, valid, boxes in zip(weights, predictions.valid, targets.boxes, strict=True):
            masks = valid.split(counts)  # (N,) -> one (H W A,) per level
            anchors = [level[mask] for level, mask in zip(levels, masks, strict=True)]  # each (n, 4)
            image_weights[valid] = valuable_region(anchors, boxes, self.config.gamma, self.config.region)
        if self.config.exclude_positives or self.config.region == "inside":
            weights[required(predictions.assignment).positive] = 0
        return (weights > 0).float() if self.config.valuable == "mask" else weights
