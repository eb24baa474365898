"""Token alignment: one deep map of the student against the patch tokens of a vision foundation model. RT-DETRv4, Liao et al., arXiv:2510.25257.

    L = weight * mean over cells inside the images of 1 - cos(P S, T)

S is one level of the student, the coarsest that both sides have; P a 1x1 convolution, always there, and dropped with the teacher; T the teacher's
map, resized to the student's where the two differ. It reads no head, no box and no class. Minimum 0, maximum 2 times the weight.

The paper's Deep Semantic Injector is this at one place: the map of stride 32 behind the encoder's self-attention, before its fusion of levels,
projected by one linear layer to the tokens of a frozen DINOv3 ViT-B/16, which sees the image at half its size. Here the teacher is `timm:NAME` or
`hf:FOLDER`, or a detector: its pyramid of the same name, or its neck where it has none. `pyramid: neck` is what enters the encoder
of a DETR, and what leaves the hybrid encoder of an RT-DETR or D-FINE, behind its fusion; `memory` is what the decoder reads. The mean over all
cells, padding included, is the published one; without padding the two are one.

The released configurations begin with a weight of 5 (S, M), 15 (L) and 20 (X), which a comment there calls five times the paper's. From then on
the weight follows the gradients (GAM): that is not here, `methods.token_alignment.balance` is its like.
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
    """weight: of the term. pyramid: the student's maps. stride: of the level; none: the coarsest that both sides have."""

    weight: Weight = 5.0
    pyramid: str = "neck"
    stride: Annotated[int, Field(ge=1)] | None = None


class TokenAlignment(Method):
    """See the module's head. Its term: `tokens`."""

    name = "token_alignment"
    group = "neck features"
    paper = "arXiv:2510.25257"
    reads = "one level of neck features or memory"
    learns = "a 1x1 convolution"
    Config = TokenAlignmentConfig

    def __init__(self, config: TokenAlignmentConfig, stride: int, target: str, widths: tuple[int, int]):
        """stride: of the level. target: the teacher's pyramid. widths: of student and teacher."""
        super().__init__()
        self.config, self.stride, self.target = config, stride, target
        self.projector = nn.Conv2d(*widths, 1)
        self.need, self.student_need = (Need(pyramids=frozenset({pyramid})) for pyramid in (target, config.pyramid))

    @classmethod
    def build(cls, config: TokenAlignmentConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError where the student has no such pyramid, or the two have no level, or not the one asked for, in common."""
        mine, theirs = config.pyramid, config.pyramid if config.pyramid in teacher.channels else "neck"
        require(
            mine in student.channels,
            cls.name,
            f"no pyramid {mine!r} on the student",
            f"it has {', '.join(student.channels)}; set methods.{cls.name}.pyramid",
        )
        common = [stride for stride in student.strides if stride in teacher.strides]
        lacking = f"no level in common, the student's strides are {student.strides}, the teacher's {teacher.strides}"
        remedy = (
            "give one of the student's, --teacher.model.strides"
            if not teacher.classes
            else "train the student with the teacher's --model.strides"
        )
        require(bool(common), cls.name, lacking, remedy)
        stride = max(common) if config.stride is None else config.stride
        remedy = f"both have {', '.join(map(str, common))}"
        require(
            stride in common, cls.name, f"methods.{cls.name}.stride {stride} is not one that both sides have", remedy
        )
        return cls(config, stride, theirs, (student.channels[mine], teacher.channels[theirs]))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        pyramid = student_output.pyramids[self.config.pyramid]
        guess = self.projector(level_at(pyramid, self.stride))
        tokens = level_at(teacher_output.pyramids[self.target], self.stride).detach()
        shape = (guess.shape[-2], guess.shape[-1])
        if tokens.shape[-2:] != shape:
            tokens = F.interpolate(tokens, shape, mode="bilinear", align_corners=False)
        inside = Layout((shape,), (self.stride,)).valid(pyramid.sizes).unflatten(1, shape)
        return {"tokens": self.config.weight * token_cosine(guess, tokens, inside)}
