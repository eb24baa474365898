"""PKT: match the similarity of instances as probabilities. Passalis and Tefas, ECCV 2018, arXiv:1803.10837.

    L = weight * n / batch * 1/n^2 sum_ij P_t[i,j] log(P_t[i,j] / P_s[i,j])
    P[i,j] = (1 + cosine of i and j) / 2, divided by the sum of row i

The sum is over the n instances of the batch (of this process). P[i,j] is the probability that instance i has instance
j as its neighbor. PKT was published for classifiers, on the last pooled vectors. Here an instance is a box;
`methods.shared.embeddings` describes its vector. The vectors of the two detectors may differ in length. The method has
no learned part.

The published weight of 30000 belongs to batches of 64 images. Because of 1/n^2, the term is then 30000 / 64 times the
mean KL of a row. A batch of detection images can have two boxes or two hundred boxes. With a fixed weight, the term of
a batch with two boxes would be a hundred times as large, because the loss falls as 1 / n. So the loss is scaled to
n = 64 (`batch`; our choice), and the published weight can be used for any number of boxes. n / 64 is averaged over
processes. `batch: none` keeps 1/n^2 unchanged.

Code and paper: in the published code, the sum includes the similarity of an instance with itself. The paper sums over
the other instances only (`diagonal: false`). The paper's Gaussian kernel is not available. With fewer than two
instances, the term is 0.
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
    """weight: weight of the term, as published for `batch` instances.
    batch: number of instances to which the loss is scaled. none: no scaling; the loss then falls as 1 / n.
    diagonal: include the similarity of an instance with itself.
    The other options: see `methods.shared.embeddings.EmbeddingConfig`.
    """

    weight: Weight = 30000.0
    batch: Annotated[int, Field(ge=1)] | None = 64
    diagonal: bool = True


class PKT(Method):
    """See the module docstring. Terms: `relations`."""

    name = "pkt"
    group = "instances"
    paper = "arXiv:1803.10837"
    copies = "which objects of a batch are similar"
    requires = "a level with the same stride on both sides, or RoI heads on both sides"
    reads = "neck features of boxes, or RoI embeddings"
    Config = PKTConfig

    def __init__(self, config: PKTConfig, embeddings: InstanceEmbeddings):
        super().__init__()
        self.config, self.embeddings = config, embeddings
        self.need = self.student_need = embeddings.need

    @classmethod
    def build(cls, config: PKTConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError if `embedding: roi` is set and a detector has no RoI embeddings."""
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
            mean_count = float(mean_over_processes(distance.new_tensor(float(count))))
            scale *= count**2 / (self.config.batch * mean_count)
        return {"relations": scale * distance}
