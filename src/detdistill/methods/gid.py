"""GID: teach where the two disagree, not where the labels are. Dai et al., CVPR 2021, arXiv:2103.02340.

    instances   score max_k |p_t - p_s| of each prediction, box of the side with the larger score; after suppression at IoU 0.3 the 10 best an image
    feature     1/K sum_i |t_i - s'_i|              s', t: RoIAligned neck features, s' behind a convolution
    relation    sum_{i != j} smoothL1(|s'_i - s'_j|/phi(s') - |t_i - t_j|/phi(t))            phi: mean over pairs
    response    1/N_m sum_m (alpha d_class + beta d_box)             m: positions that the student's assigner gives to the instances
    L = w_feature feature + w_relation relation + w_response response

Both sides must predict on one grid: equal strides and anchors a cell, and shared classes. Of two-stage detectors the RPN is compared, whose
objectness has no class.

There is no official code. The weights 5e-4, 40, 1 and alpha 0.1, beta 1 are those commonly passed on; we could not verify them. Ours, as we
know no better: the 3x3 convolution and the 7x7 RoIs; K and N_m counted over the batch and averaged over processes; relations among the
instances of one image, mean over images; for d_class the quality focal loss to the teacher's scores (`beta` 2, or 0 for plain cross-entropy) and
for d_box 1 - GIoU; boxes cut at their image before suppression. The formula sums over pairs (`pairs: sum`); with 40 that is tens of times every
other term, while the mean over pairs is of their size, so `mean` is the default.

`variant: ld`, the imitation of GID in the code of LD (arXiv:2102.12252), with which GFL R50 reaches 41.5 from 40.1: weight 2 times the sum over
levels of the plain mean squares of neck features at the 10 positions a level that disagree most. All images of the batch share the 10 and suppress
each other; the box is the teacher's where its score of the class that differs most is larger; a level where no label has a positive teaches
nothing; nothing is averaged over processes. Padding takes part there, not here. Widths are equal there; here a 1x1 convolution is learned else.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from detdistill.distributed import mean_over_processes
from detdistill.geometry import disagreement, general_instances, pool_rois, strongest
from detdistill.losses import giou_distance, quality_focal, relation_distance
from detdistill.methods.method import Method, Weight, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.levels import when_widths_differ
from detdistill.types import DetectorInfo, DetectorOutput, Need, Predictions, Targets, TrainState, required


@dataclass(frozen=True)
class GIDConfig:
    """weight_feature, weight_relation, weight_response: of the paper's three terms; share_class, share_box: alpha and beta within the last.
    weight_pixels: of `variant: ld`, which has no other term. instances: an image (ld: a level). overlap: IoU above which the lesser of two
    is dropped. roi_size: side of the pooled features. beta: of the class distance. pairs, variant: see the module's head."""

    variant: Literal["paper", "ld"] = "paper"
    weight_feature: Weight = 5e-4
    weight_relation: Weight = 40.0
    weight_response: Weight = 1.0
    share_class: Weight = 0.1
    share_box: Weight = 1.0
    weight_pixels: Weight = 2.0
    instances: Annotated[int, Field(ge=1)] = 10
    overlap: Annotated[float, Field(ge=0, le=1)] = 0.3
    roi_size: Annotated[int, Field(ge=1)] = 7
    beta: Weight = 2.0
    pairs: Literal["mean", "sum"] = "mean"


class GID(Method):
    """See the module's head. Its terms: `feature`, `relation`, `response`, or with `variant: ld` `pixels`."""

    name = "gid"
    group = "instances"
    paper = "arXiv:2103.02340"
    reads = "neck features, dense predictions of both"
    learns = "a 3x3 convolution on the pooled features"
    gain = "RetinaNet R50 36.2 to 39.1 (RetinaNet R101)"
    Config = GIDConfig

    def __init__(self, config: GIDConfig, connector: nn.Module, shared: SharedClasses | None):
        """shared: none where the dense stage has no classes (RPN)."""
        super().__init__()
        self.config, self.connector, self.shared = config, connector, shared
        pyramids = frozenset({"neck"})
        # The RPN comes with the proposals, without the second stage.
        self.need = Need(pyramids=pyramids, predictions=True) if shared else Need(pyramids=pyramids, proposals=True)

    @classmethod
    def build(cls, config: GIDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError unless both predict on one grid, of the same kind of stage, and know a class in common."""
        for side, info in (("student", student), ("teacher", teacher)):
            lacking = f"the {side} ({info.kind}) has no dense grid of predictions"
            require(info.grid is not None, cls.name, lacking, "take a dense or a two-stage detector")
        two_stage = [info.proposals is not None for info in (student, teacher)]
        lacking = f"an RPN and a dense head have different scores, the student is a {student.kind}, the teacher a {teacher.kind}"
        require(two_stage[0] == two_stage[1], cls.name, lacking, "take dense or two-stage detectors for both")
        mine, theirs = required(student.grid), required(teacher.grid)
        grids = f"the student predicts at strides {student.strides} with {mine.anchors_per_cell} anchors a cell"
        grids += f", the teacher at {teacher.strides} with {theirs.anchors_per_cell}"
        same = student.strides == teacher.strides and mine.anchors_per_cell == theirs.anchors_per_cell
        require(same, cls.name, grids, "give the student the teacher's grid: its head and its --model.strides")
        shared = None if two_stage[0] else SharedClasses.between(cls.name, student, teacher)
        widths = student.channels["neck"], teacher.channels["neck"]
        connector = when_widths_differ(*widths) if config.variant == "ld" else nn.Conv2d(*widths, 3, padding=1)
        return cls(config, connector, shared)

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        guess, taught = student_output.stages[0], teacher_output.stages[0]
        if self.shared is not None:
            guess, taught = self.shared.of_student(guess), self.shared.of_teacher(taught)
        if self.config.variant == "ld":
            return {"pixels": self.config.weight_pixels * self._pixels(guess, taught, student_output, teacher_output)}
        instances = self._instances(guess, taught, student_output)
        terms = self._pooled(student_output, teacher_output, instances)
        return terms | {
            "response": self.config.weight_response * self._response(guess, taught, student_output, instances)
        }

    @torch.no_grad()
    def _instances(self, guess: Predictions, taught: Predictions, student_output: DetectorOutput) -> Targets:
        """The general instances of each image as if they were ground truth, labels in the student's order."""
        scores, boxes, labels = disagreement((guess.scores(), taught.scores()), (guess.boxes, taught.boxes))
        sizes, valid = student_output.pyramids["neck"].sizes, guess.valid & taught.valid
        boxes, rows = general_instances(scores, boxes, valid, sizes, self.config.instances, self.config.overlap)
        if self.shared is not None:
            labels = labels.new_tensor(self.shared.student)[labels]
        return Targets(
            tuple(own[row] for own, row in zip(boxes, rows, strict=True)),
            tuple(own[row] for own, row in zip(labels, rows, strict=True)),
        )

    def _pooled(
        self, student_output: DetectorOutput, teacher_output: DetectorOutput, instances: Targets
    ) -> dict[str, Tensor]:
        necks = student_output.pyramids["neck"], teacher_output.pyramids["neck"]
        counts = [len(own) for own in instances.labels]
        cuts = [pool_rois(neck.levels, neck.strides, instances.boxes, self.config.roi_size) for neck in necks]
        guess, taught = self.connector(cuts[0]).flatten(1), cuts[1].detach().flatten(1)  # (n, D)
        count = mean_over_processes(guess.new_tensor(float(len(guess))))
        feature = torch.linalg.vector_norm(guess - taught, dim=1).sum() / count
        relation = torch.stack(
            [
                relation_distance(own, other)
                / (max(len(own) * (len(own) - 1), 1) if self.config.pairs == "mean" else 1)
                for own, other in zip(guess.split(counts), taught.split(counts), strict=True)
            ]
        ).mean()
        return {"feature": self.config.weight_feature * feature, "relation": self.config.weight_relation * relation}

    def _response(
        self, guess: Predictions, taught: Predictions, student_output: DetectorOutput, instances: Targets
    ) -> Tensor:
        with torch.no_grad():
            assignment = required(student_output.assign)(instances)
        mask = assignment.positive & assignment.valid & taught.valid
        count = mean_over_processes(mask.sum().float())
        classes = quality_focal(guess.logits[mask], taught.scores()[mask].detach(), self.config.beta).sum()
        boxes = taught.boxes[mask].detach()
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return (
            self.config.share_class * classes
            + self.config.share_box * (giou_distance(guess.boxes[mask], boxes) * has_area).sum()
        ) / count

    def _pixels(
        self, guess: Predictions, taught: Predictions, student_output: DetectorOutput, teacher_output: DetectorOutput
    ) -> Tensor:
        """The sum over levels of `variant: ld`."""
        layout, stage = required(guess.layout), student_output.stages[0]
        with torch.no_grad():
            scores, boxes, _ = disagreement(
                (guess.scores(), taught.scores()), (guess.boxes, taught.boxes), side="difference"
            )
            parts = [
                layout.split(part)
                for part in (scores, boxes, guess.valid & taught.valid, required(stage.assignment).positive)
            ]
        terms = []
        for mine, theirs, *level in zip(
            student_output.pyramids["neck"].levels, teacher_output.pyramids["neck"].levels, *parts, strict=True
        ):
            score, box, valid, positive = level
            rows = valid.flatten().nonzero()[:, 0] if positive.any() else valid.new_zeros(0, dtype=torch.long)
            picked = rows[
                strongest(score.flatten()[rows], box.reshape(-1, 4)[rows], self.config.instances, self.config.overlap)
            ]
            cells = picked // layout.anchors
            features, wanted = (
                side.permute(0, 2, 3, 1).flatten(0, 2)[cells] for side in (mine, theirs.detach())
            )  # (k, C)
            gap = self.connector(features[:, :, None, None])[:, :, 0, 0] - wanted
            terms.append(gap.float().square().sum() / max(gap.numel(), 1))
        return torch.stack(terms).sum()
