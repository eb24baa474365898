"""PKT: how likely an instance takes another for its neighbour. Passalis and Tefas, ECCV 2018, arXiv:1803.10837.

    L = weight * n / batch * 1/n^2 sum_ij P_t[i,j] log(P_t[i,j] / P_s[i,j]),    P = (1 + cosine) / 2 over its sum in the row

over the n instances of the batch (of this process). Published for classifiers, on the last pooled vectors; an instance of a detector is a box,
see `methods.shared.embeddings` for its vector. Widths may differ, nothing is learned.

Weight: 30000 belongs to batches of 64 images, where 1/n^2 makes it 30000 / 64 times the mean KL of a row. A batch of images has two boxes or two
hundred, and with a fixed weight the few would count a hundred times as much as the many. So the loss is brought to n = 64 (`batch`; ours): the
weight means what it meant there, and does not hang on how many boxes there are. n / 64 is averaged over processes. `batch: none` is 1/n^2 as it stands.

Code and paper: the published code keeps an instance's likeness to itself, the paper sums over the others (`diagonal: no`). The paper's Gaussian
kernel is not offered. Fewer than two instances give 0.
"""

from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field
from torch import Tensor

from detdistill.distributed import mean_over_processes
from detdistill.losses import pkt
from detdistill.methods.method import Method, Weight
from detdistill.methods.shared.embeddings import EmbeddingConfig, InstanceEmbeddings
from detdistill.types import DetectorInfo, DetectorOutput, Targets, TrainState


@dataclass(frozen=True)
class PKTConfig(EmbeddingConfig):
    """weight: as published, for `batch` instances; batch: none: the loss as it is, which falls as 1 / n. diagonal: see the module's head.
    The other: see `methods.shared.embeddings.EmbeddingConfig`."""

    weight: Weight = 30000.0
    batch: Annotated[int, Field(ge=1)] | None = 64
    diagonal: bool = True


class PKT(Method):
    """See the module's head. Its term: `relations`."""

    name = "pkt"
    group = "instances"
    paper = "arXiv:1803.10837"
    reads = "neck features of boxes, or RoI embeddings"
    Config = PKTConfig

    def __init__(self, config: PKTConfig, embeddings: InstanceEmbeddings):
        super().__init__()
        self.config, self.embeddings = config, embeddings
        self.need = self.student_need = embeddings.need

    @classmethod
    def build(cls, config: PKTConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError where RoI embeddings are asked for and a side has none."""
        return cls(config, InstanceEmbeddings.build(cls.name, config, student, teacher))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        instances = self.embeddings(student_output, teacher_output, targets)
        distance = pkt(instances.student, instances.teacher, self.config.diagonal)
        scale = self.config.weight
        if self.config.batch is not None:
            count = len(instances.student)
            scale *= count**2 / (self.config.batch * float(mean_over_processes(distance.new_tensor(float(count)))))
        return {"relations": scale * distance}
