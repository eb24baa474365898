"""One vector an instance, from both detectors: what methods that relate instances to each other read.

neck   the mean over a RoIAlign of 7 x 7 of each ground-truth box, each side on its own pyramid, on the level that the box's size gives
roi    what the box heads give their predictors for those of the student's sampled proposals that answer for a ground truth; several a box
auto   roi where both detectors have a RoI head, as these methods are made for the last vector before a classifier, else neck
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
    """embedding: which vectors, see the module's head."""

    embedding: Literal["auto", "neck", "roi"] = "auto"


@dataclass(frozen=True, eq=False)
class Instances:
    """n instances of a batch, image by image. student (n, C), teacher (n, D), without gradient; images, boxes (n,): which image of the batch,
    and which of its ground truths."""

    student: Tensor
    teacher: Tensor
    images: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class InstanceEmbeddings:
    """How to read them. embedding: `neck` or `roi`. widths: of student and teacher."""

    embedding: Literal["neck", "roi"]
    widths: tuple[int, int]

    @classmethod
    def build(cls, method: str, config: EmbeddingConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError where RoI embeddings are asked for and a side has none."""
        heads = [None if info.proposals is None else info.proposals.embedding_channels for info in (student, teacher)]
        if config.embedding == "neck" or (config.embedding == "auto" and None in heads):
            return cls("neck", (student.channels["neck"], teacher.channels["neck"]))
        remedy = f"take faster_rcnn or mask_rcnn for both, or methods.{method}.embedding=neck"
        require_roi_heads(method, student, teacher, remedy)
        require(None not in heads, method, "a RoI head without embeddings", remedy)
        return cls("roi", (required(heads[0]), required(heads[1])))

    @property
    def need(self) -> Need:
        """Of either side."""
        return Need(pyramids=frozenset({"neck"})) if self.embedding == "neck" else Need(classify=True)

    def __call__(self, student_output: DetectorOutput, teacher_output: DetectorOutput, targets: Targets) -> Instances:
        """n may be 0."""
        return (
            _of_boxes(student_output, teacher_output, targets)
            if self.embedding == "neck"
            else _of_proposals(student_output, teacher_output)
        )


def _of_boxes(student_output: DetectorOutput, teacher_output: DetectorOutput, targets: Targets) -> Instances:
    counts = torch.tensor([len(boxes) for boxes in targets.boxes], device=targets.labels[0].device)
    images = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    begins = (counts.cumsum(0) - counts).repeat_interleave(counts)
    with torch.no_grad():
        taught = _pooled(teacher_output.pyramids["neck"], targets)
    return Instances(
        _pooled(student_output.pyramids["neck"], targets),
        taught,
        images,
        torch.arange(len(images), device=counts.device) - begins,
    )


def _pooled(pyramid: Pyramid, targets: Targets) -> Tensor:
    """(n, C)."""
    return pool_rois(pyramid.levels, pyramid.strides, targets.boxes).mean((2, 3))


def _of_proposals(student_output: DetectorOutput, teacher_output: DetectorOutput) -> Instances:
    stage = student_output.stages[-1]
    assignment = required(stage.assignment)
    with torch.no_grad():
        taught = required(teacher_output.proposals).classify(required(student_output.proposals).boxes)
    rows = assignment.positive & assignment.valid & stage.valid & taught.valid
    return Instances(
        student=required(stage.embeddings)[rows],
        teacher=required(taught.embeddings)[rows].detach(),
        images=rows.nonzero()[:, 0],
        boxes=assignment.matched[rows],
    )


def one_a_box(instances: Instances) -> Instances:
    """The mean over the instances of each ground truth, in single precision at least; boxes that have none are left out."""
    keys, place, counts = torch.stack([instances.images, instances.boxes], dim=1).unique(
        dim=0, return_inverse=True, return_counts=True
    )

    def mean(vectors: Tensor) -> Tensor:
        vectors = vectors.to(
            torch.promote_types(vectors.dtype, torch.float32)
        )  # a box has up to a hundred proposals, half adds them badly
        return vectors.new_zeros((len(keys), vectors.shape[1])).index_add(0, place, vectors) / counts[:, None]

    return replace(
        instances, student=mean(instances.student), teacher=mean(instances.teacher), images=keys[:, 0], boxes=keys[:, 1]
    )
