"""One vector per instance from both detectors, for methods that relate instances to each other.

neck   the mean of a 7 x 7 RoIAlign of each ground-truth box, on each detector's own pyramid. The size of the box
       decides the level
roi    the vectors that the box head passes to its predictors, for the student's sampled proposals that are assigned
       to a ground truth. A box may have several
auto   `roi` if both detectors have an RoI head, because these methods were designed for the last vector before a
       classifier; else `neck`
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from detdistill.geometry import pool_rois
from detdistill.methods.method import require
from detdistill.methods.shared.rois import require_roi_heads
from detdistill.types import DetectorInfo, DetectorOutput, Need, Pyramid, Targets, required


@dataclass(frozen=True)
class EmbeddingConfig:
    """embedding: `roi` uses the vectors of the RoI heads for the student's positive proposals, `neck` pools each
    ground-truth box from the neck, `auto` is roi if both detectors have an RoI head, else neck."""

    embedding: Literal["auto", "neck", "roi"] = "auto"


@dataclass(frozen=True, eq=False)
class Instances:
    """n instances of a batch, ordered by image.

    student (n, C), teacher (n, D): their vectors; the teacher's are detached.
    images (n,): index of the image in the batch. boxes (n,): index of the ground truth in the image.
    """

    student: Tensor
    teacher: Tensor
    images: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class InstanceEmbeddings:
    """Reads the vectors. embedding: `neck` or `roi`. widths: length of the student's and the teacher's vectors."""

    embedding: Literal["neck", "roi"]
    widths: tuple[int, int]

    @classmethod
    def build(cls, method: str, config: EmbeddingConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError if `embedding: roi` is set and a detector has no RoI embeddings."""
        student_width = None if student.proposals is None else student.proposals.embedding_channels
        teacher_width = None if teacher.proposals is None else teacher.proposals.embedding_channels
        has_embeddings = student_width is not None and teacher_width is not None
        if config.embedding == "neck" or (config.embedding == "auto" and not has_embeddings):
            return cls("neck", (student.width(), teacher.width()))
        remedy = f"use faster_rcnn or mask_rcnn for both, or set methods.{method}.embedding=neck"
        require_roi_heads(method, student, teacher, remedy)
        require(has_embeddings, method, "an RoI head has no embeddings", remedy)
        return cls("roi", (required(student_width), required(teacher_width)))

    @property
    def need(self) -> Need:
        """The parts of both outputs that the vectors are read from."""
        return Need(pyramids=frozenset({"neck"})) if self.embedding == "neck" else Need(classify=True)

    def __call__(self, student_output: DetectorOutput, teacher_output: DetectorOutput, targets: Targets) -> Instances:
        """The instances of the batch; n may be 0."""
        if self.embedding == "neck":
            return _box_instances(student_output, teacher_output, targets)
        return _proposal_instances(student_output, teacher_output)


def _box_instances(student_output: DetectorOutput, teacher_output: DetectorOutput, targets: Targets) -> Instances:
    """One instance per ground-truth box."""
    device = targets.labels[0].device
    counts = torch.tensor([len(boxes) for boxes in targets.boxes], device=device)  # (B,)
    images = torch.arange(len(counts), device=device).repeat_interleave(counts)  # (n,)
    first_rows = (counts.cumsum(0) - counts).repeat_interleave(counts)  # (n,): row of the image's first box
    with torch.no_grad():
        teacher_vectors = _pooled(teacher_output.pyramids["neck"], targets)
    return Instances(
        student=_pooled(student_output.pyramids["neck"], targets),
        teacher=teacher_vectors,
        images=images,
        boxes=torch.arange(len(images), device=device) - first_rows,
    )


def _pooled(pyramid: Pyramid, targets: Targets) -> Tensor:
    """The mean of each ground-truth box's region, (n, C)."""
    return pool_rois(pyramid.levels, pyramid.strides, targets.boxes).mean((2, 3))  # (n, C, 7, 7) -> (n, C)


def _proposal_instances(student_output: DetectorOutput, teacher_output: DetectorOutput) -> Instances:
    """One instance per positive proposal of the student; both RoI heads classify the same proposals."""
    student_stage = student_output.stages[-1]
    assignment = required(student_stage.assignment)
    with torch.no_grad():
        teacher_stage = required(teacher_output.proposals).classify(required(student_output.proposals).boxes)
    rows = assignment.positive & assignment.valid & student_stage.valid & teacher_stage.valid  # (B, P)
    return Instances(
        student=required(student_stage.embeddings)[rows],  # (B, P, C) -> (n, C)
        teacher=required(teacher_stage.embeddings)[rows].detach(),
        images=rows.nonzero()[:, 0],
        boxes=assignment.matched[rows],
    )


def mean_per_box(instances: Instances) -> Instances:
    """One instance per ground truth: the mean of its instances, at least in single precision.

    Boxes without instances are left out.
    """
    pairs = torch.stack([instances.images, instances.boxes], dim=1)  # (n, 2)
    keys, row, counts = pairs.unique(dim=0, return_inverse=True, return_counts=True)  # (m, 2), (n,), (m,)

    def mean(vectors: Tensor) -> Tensor:
        # A box has up to a hundred proposals: a sum in half precision would be inaccurate.
        vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
        sums = vectors.new_zeros((len(keys), vectors.shape[1])).index_add(0, row, vectors)  # (n, C) -> (m, C)
        return sums / counts[:, None]

    return replace(
        instances,
        student=mean(instances.student),
        teacher=mean(instances.teacher),
        images=keys[:, 0],
        boxes=keys[:, 1],
    )
