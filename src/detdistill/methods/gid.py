"""GID: distill where student and teacher disagree, not at the labels. Dai et al., CVPR 2021, arXiv:2103.02340.

    instances   boxes where the scores differ most. Score of a prediction: max_k |p_t - p_s|. Box: from the detector
                with the larger best score. After suppression at IoU 0.3, the 10 best per image
    feature     1/K sum_i |t_i - s'_i|
                s', t: RoIAlign of neck features, s' after a convolution. K: number of instances
    relation    sum_{i != j} smoothL1(|s'_i - s'_j| / phi(s') - |t_i - t_j| / phi(t))       phi: mean over pairs
    response    1/N_m sum_m (alpha d_class + beta d_box)
                m: the N_m predictions that the student's assigner assigns to the instances
    L = w_feature feature + w_relation relation + w_response response

Student and teacher must predict on the same grid (equal strides and anchors per cell) and share a class. For two-stage
detectors, the RPNs are compared. Their objectness has no class.

There is no official code. The weights 5e-4, 40 and 1, alpha 0.1 and beta 1 are the values usually cited; we could not
verify them. We found no source for the following choices, so they are ours. The convolution is 3x3 and the RoIs are
7x7. K and N_m are counted over the batch and averaged over processes. Relations are between the instances of one image
and are averaged over images. d_class is the quality focal loss with the teacher's scores as targets (`beta` 2; 0 is
plain cross-entropy). d_box is 1 - GIoU. Boxes are clipped to their image before suppression.

The paper's formula sums over pairs (`pairs: sum`). With the weight 40, this term is then tens of times larger than
any other term. The mean over pairs is about as large as the other terms, so `mean` is the default. The method
`gid_ld` is the simpler imitation of GID in LD's released code.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from detdistill.distributed import mean_over_processes
from detdistill.geometry import disagreement, general_instances, pool_rois
from detdistill.losses import giou_distance, quality_focal, relation_distance
from detdistill.methods.method import Method, Weight
from detdistill.methods.shared.same_grid import SameGrid
from detdistill.types import DetectorInfo, DetectorOutput, Predictions, Targets, TrainState, required


@dataclass(frozen=True)
class GIDConfig:
    """weight_feature, weight_relation, weight_response: weights of the three terms.
    share_class, share_box: weights alpha and beta of the class and box distance in the response term.
    instances: maximum number of instances per image.
    overlap: IoU above which suppression drops the instance with the lower score.
    roi_size: rows and columns of the pooled features.
    beta: exponent of the quality focal loss; 0 is plain cross-entropy.
    pairs: the relation term is the `sum` or the `mean` over pairs of instances.
    """

    weight_feature: Weight = 5e-4
    weight_relation: Weight = 40.0
    weight_response: Weight = 1.0
    share_class: Weight = 0.1
    share_box: Weight = 1.0
    instances: Annotated[int, Field(ge=1)] = 10
    overlap: Annotated[float, Field(ge=0, le=1)] = 0.3
    roi_size: Annotated[int, Field(ge=1)] = 7
    beta: Weight = 2.0
    pairs: Literal["mean", "sum"] = "mean"


class GID(Method):
    """See the module docstring. Terms: `feature`, `relation`, `response`."""

    name = "gid"
    group = "instances"
    paper = "arXiv:2103.02340"
    copies = "features, relations and predictions where student and teacher disagree most"
    requires = "dense heads with the same cells and anchors, or RPNs with the same anchors"
    reads = "neck features, dense predictions of both"
    learns = "a 3x3 convolution on the pooled features"
    gain = "RetinaNet R50 36.2 to 39.1 (RetinaNet R101)"
    Config = GIDConfig

    def __init__(self, config: GIDConfig, connector: nn.Module, grid: SameGrid):
        super().__init__()
        self.config, self.connector, self.grid = config, connector, grid
        self.need = grid.need

    @classmethod
    def build(cls, config: GIDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError in the same cases as `SameGrid.build`."""
        grid = SameGrid.build(cls.name, student, teacher)
        connector = nn.Conv2d(student.width(), teacher.width(), 3, padding=1)
        return cls(config, connector, grid)

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        student, teacher = self.grid.predictions(student_output, teacher_output)
        instances = self.instances(student, teacher, student_output.pyramids["neck"].sizes)
        feature, relation = self.feature_and_relation(student_output, teacher_output, instances)
        response = self.response(student, teacher, student_output, instances)
        return {
            "feature": self.config.weight_feature * feature,
            "relation": self.config.weight_relation * relation,
            "response": self.config.weight_response * response,
        }

    @torch.no_grad()
    def instances(self, student: Predictions, teacher: Predictions, sizes: Tensor) -> Targets:
        """The instances of each image, in the form of ground truth.

        sizes: of the images, (B, 2). Labels are in the student's class order.
        """
        scores, boxes, labels = disagreement((student.scores(), teacher.scores()), (student.boxes, teacher.boxes))
        is_valid = student.valid & teacher.valid
        boxes, rows = general_instances(scores, boxes, is_valid, sizes, self.config.instances, self.config.overlap)
        if self.grid.classes is not None:
            labels = labels.new_tensor(self.grid.classes.student)[labels]
        instance_boxes = [image_boxes[index] for image_boxes, index in zip(boxes, rows, strict=True)]
        instance_labels = [image_labels[index] for image_labels, index in zip(labels, rows, strict=True)]
        return Targets(tuple(instance_boxes), tuple(instance_labels))

    def feature_and_relation(
        self, student_output: DetectorOutput, teacher_output: DetectorOutput, instances: Targets
    ) -> tuple[Tensor, Tensor]:
        """The feature term and the relation term, unweighted, () each."""
        student_neck, teacher_neck = student_output.pyramids["neck"], teacher_output.pyramids["neck"]
        size = self.config.roi_size
        student_rois = pool_rois(student_neck.levels, student_neck.strides, instances.boxes, size)  # (n, C, 7, 7)
        teacher_rois = pool_rois(teacher_neck.levels, teacher_neck.strides, instances.boxes, size)
        student_vectors = self.connector(student_rois).flatten(1)  # (n, D)
        teacher_vectors = teacher_rois.detach().flatten(1)  # (n, D)
        count = mean_over_processes(student_vectors.new_tensor(float(len(student_vectors))))
        feature = torch.linalg.vector_norm(student_vectors - teacher_vectors, dim=1).sum() / count
        per_image = [len(labels) for labels in instances.labels]
        relations = []
        for student_rows, teacher_rows in zip(
            student_vectors.split(per_image), teacher_vectors.split(per_image), strict=True
        ):
            pairs = max(len(student_rows) * (len(student_rows) - 1), 1) if self.config.pairs == "mean" else 1
            relations.append(relation_distance(student_rows, teacher_rows) / pairs)
        return feature, torch.stack(relations).mean()

    def response(
        self, student: Predictions, teacher: Predictions, student_output: DetectorOutput, instances: Targets
    ) -> Tensor:
        """The response term, unweighted, ()."""
        with torch.no_grad():
            assignment = required(student_output.assign)(instances)
        mask = assignment.positive & assignment.valid & teacher.valid  # (B, N)
        count = mean_over_processes(mask.sum().float())
        teacher_scores, teacher_boxes = teacher.scores()[mask].detach(), teacher.boxes[mask].detach()  # (n, K), (n, 4)
        class_distance = quality_focal(student.logits[mask], teacher_scores, self.config.beta).sum()
        has_area = (teacher_boxes[:, 2:] > teacher_boxes[:, :2]).all(1)
        box_distance = (giou_distance(student.boxes[mask], teacher_boxes) * has_area).sum()
        return (self.config.share_class * class_distance + self.config.share_box * box_distance) / count
