"""Token alignment: a deep student map imitates the patch tokens of a foundation model. Liao et al., arXiv:2510.25257.

    L = weight * mean over cells inside the images of 1 - cos(P S, T)

This is the distillation loss of RT-DETRv4. S is one level of the student, by default the coarsest that both sides have.
P is a 1x1 convolution, used even if the channel counts are equal, and not part of the trained student. T is the
teacher's map, resized to the student's if the two differ in size. The method reads no head, no boxes and no classes.
The minimum is 0 and the maximum is 2 times the weight.

The paper's Deep Semantic Injector is this loss on one map: the map of stride 32 after the encoder's self-attention and
before its fusion of levels. One linear layer projects it to the tokens of a frozen DINOv3 ViT-B/16, which receives
the image at half its size.

Here the teacher is `timm:NAME` or `hf:FOLDER`, or a detector. A detector teaches with the pyramid of the same name, or
with its neck if it has no such pyramid. `pyramid: neck` is the input of the encoder of a DETR, and the output of the
hybrid encoder of an RT-DETR or D-FINE, after its fusion. `pyramid: memory` is the input of the decoder. The published
mean is over all cells, including padding. Without padding both means are equal.

The released configurations start with a weight of 5 (S, M), 15 (L) and 20 (X). According to a comment there, these are
five times the paper's weights. During training the published weight follows the gradients (GAM). This is not
implemented here; `methods.token_alignment.balance` is similar.
"""

from dataclasses import dataclass
from typing import Annotated, Self

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from detdistill.losses import token_cosine
from detdistill.methods.method import Method, Weight, require
from detdistill.methods.shared.levels import level_at
from detdistill.types import DetectorInfo, DetectorOutput, Layout, Need, Targets, TrainState


@dataclass(frozen=True)
class TokenAlignmentConfig:
    """weight: weight of the term.
    pyramid: name of the student's pyramid.
    stride: stride of the level; none: the coarsest level that both sides have.
    """

    weight: Weight = 5.0
    pyramid: str = "neck"
    stride: Annotated[int, Field(ge=1)] | None = None


class TokenAlignment(Method):
    """See the module docstring. Terms: `tokens`."""

    name = "token_alignment"
    group = "neck features"
    paper = "arXiv:2510.25257"
    copies = "the direction of each cell's features of a ViT or a detector"
    requires = "a level with the same stride on both sides"
    reads = "one level of neck features or memory"
    learns = "a 1x1 convolution"
    unlabeled = True
    Config = TokenAlignmentConfig

    def __init__(self, config: TokenAlignmentConfig, stride: int, teacher_pyramid: str, channels: tuple[int, int]):
        """stride: stride of the level. teacher_pyramid: name of the teacher's pyramid. channels: (student, teacher)."""
        super().__init__()
        self.config, self.stride, self.teacher_pyramid = config, stride, teacher_pyramid
        self.projector = nn.Conv2d(*channels, 1)
        self.need = Need(pyramids=frozenset({teacher_pyramid}))
        self.student_need = Need(pyramids=frozenset({config.pyramid}))

    @classmethod
    def build(cls, config: TokenAlignmentConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError if the student has no pyramid `config.pyramid`, or if the two have no common level.

        Also raises it if `config.stride` is set and a side has no level of this stride.
        """
        problem = f"no pyramid {config.pyramid!r} on the student"
        remedy = f"the student has {', '.join(student.channels)}: set methods.{cls.name}.pyramid"
        require(config.pyramid in student.channels, cls.name, problem, remedy)
        teacher_pyramid = config.pyramid if config.pyramid in teacher.channels else "neck"

        common = [stride for stride in student.strides if stride in teacher.strides]
        problem = f"no level in common: the student's strides are {student.strides}, the teacher's {teacher.strides}"
        if teacher.classes:
            remedy = "train the student with the teacher's --model.strides"
        else:  # a feature extractor, which can be built with another stride
            remedy = "set --teacher.model.strides to a stride of the student"
        require(bool(common), cls.name, problem, remedy)

        stride = max(common) if config.stride is None else config.stride
        problem = f"methods.{cls.name}.stride is {stride}, which is not a stride of both detectors"
        require(stride in common, cls.name, problem, f"choose from {', '.join(map(str, common))}")
        channels = student.width(config.pyramid, stride), teacher.width(teacher_pyramid, stride)
        return cls(config, stride, teacher_pyramid, channels)

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        student_pyramid = student_output.pyramids[self.config.pyramid]
        projected = self.projector(level_at(student_pyramid, self.stride))  # (B, D, H, W), D of the teacher
        tokens = level_at(teacher_output.pyramids[self.teacher_pyramid], self.stride).detach()  # (B, D, h, w)
        shape = (projected.shape[-2], projected.shape[-1])
        if tokens.shape[-2:] != shape:
            tokens = F.interpolate(tokens, shape, mode="bilinear", align_corners=False)  # (B, D, H, W)
        layout = Layout((shape,), (self.stride,))
        is_inside = layout.valid(student_pyramid.sizes).unflatten(1, shape)  # (B, HW) -> (B, H, W)
        return {"tokens": self.config.weight * token_cosine(projected, tokens, is_inside)}
