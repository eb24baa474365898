"""CRD: contrast each instance with a memory of others. Tian, Krishnan and Isola, ICLR 2020, arXiv:1910.10699.

    o_k = exp(<m_k, v> / T) / Z,    L = -log o_0 / (o_0 + K/M) - sum over K negatives of log (K/M) / (o_k + K/M),    weight * (L_s + L_t)

v: a linear map to 128 numbers of unit length, of the student's vector (L_s) and of the teacher's (L_t); both maps are learned. m: memory of
the other side; after scoring, the batch's slots become the normalised mean of old and new. Mean over instances. Published for classifiers, whose
images have one slot each; here an instance is a box (`methods.shared.embeddings`; one vector a box), known by its image's id and its place among the
image's boxes. Where augmentation drops boxes (a crop), the place counts those left, and a slot may for once hold a neighbour.

Ours, as the paper is silent on detectors: the memory has M slots (`capacity`), given to boxes as they are first seen; when all are taken, those given
longest ago are given anew. A data set may have more boxes than slots, so a new slot begins as the box's own vectors (`begin: own`), or its positive
would be a stranger's; `random` is the published beginning. Negatives are drawn from boxes seen so far, of another class, as published; with one
class, from other boxes. K is 4096, as 16384 are more than most detection sets have boxes. Z is the mean score against the whole memory at the first
batch with a box, when it is random, times M; then it is kept, as published (there: the mean over what was drawn).

Slots, memory and Z are the same on every process, from the boxes of all, and part of the method's state. DistributedDataParallel sends
buffers around each step: 1 kB a slot.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from detdistill.distributed import gather_rows, mean_over_processes
from detdistill.losses import contrast_scores, noise_contrast, unit
from detdistill.methods.method import Method, Weight
from detdistill.methods.shared.bank import InstanceBank
from detdistill.methods.shared.embeddings import EmbeddingConfig, InstanceEmbeddings, one_a_box
from detdistill.types import DetectorInfo, DetectorOutput, Targets, TrainState


@dataclass(frozen=True)
class CRDConfig(EmbeddingConfig):
    """negatives: K. capacity: M. width: of the learned vectors. momentum: share of the old memory. positives: a box's own slot, or with `relax`
    any of its class. begin: of a new slot. The other: see `methods.shared.embeddings.EmbeddingConfig`."""

    weight: Weight = 0.8
    negatives: Annotated[int, Field(ge=1)] = 4096
    capacity: Annotated[int, Field(ge=2)] = 32768
    width: Annotated[int, Field(ge=1)] = 128
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.07
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    positives: Literal["exact", "relax"] = "exact"
    begin: Literal["own", "random"] = "own"


class CRD(Method):
    """See the module's head. Its term: `contrast`."""

    name = "crd"
    group = "instances"
    paper = "arXiv:1910.10699"
    reads = "neck features of boxes, or RoI embeddings"
    learns = "a linear map of each side to 128 numbers, a memory of instances"
    Config = CRDConfig
    constants: Tensor

    def __init__(self, config: CRDConfig, embeddings: InstanceEmbeddings):
        super().__init__()
        self.config, self.embeddings = config, embeddings
        self.need = self.student_need = embeddings.need
        self.maps = nn.ModuleList(nn.Linear(width, config.width) for width in embeddings.widths)  # student's, teacher's
        self.bank = InstanceBank(config.capacity, config.width)
        self.register_buffer("constants", torch.zeros(2))  # Z of L_s and of L_t; 0: not yet

    @classmethod
    def build(cls, config: CRDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError where RoI embeddings are asked for and a side has none."""
        return cls(config, InstanceEmbeddings.build(cls.name, config, student, teacher))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`. Moves the memory. Raises ValueError without `state.ids`, and UserError where a batch has more boxes than slots."""
        if state.ids is None:
            raise ValueError(
                "method crd remembers boxes by their image: it needs state.ids, the data set's image ids of the batch"
            )
        instances = one_a_box(self.embeddings(student_output, teacher_output, targets))
        keys = torch.stack([state.ids.to(instances.images)[instances.images], instances.boxes], dim=1)
        labels = torch.cat(
            [own[instances.boxes[instances.images == image]] for image, own in enumerate(targets.labels)]
        )
        with torch.autocast(instances.student.device.type, enabled=False):  # exp(1 / T) is beyond half precision
            sides = instances.student, instances.teacher
            vectors = [
                unit(side(given.to(self.bank.vectors.dtype))) for side, given in zip(self.maps, sides, strict=True)
            ]
            index, everyone, slots = self._look_up(
                torch.stack(vectors), torch.cat([keys, labels[:, None]], dim=1), state.generator
            )
            mine, theirs = self.bank.vectors.clone()  # the backward pass needs it as it was
            costs = [
                noise_contrast(
                    contrast_scores(own, other, index, self.config.temperature) / constant, self.config.capacity
                ).sum()
                for own, other, constant in zip(vectors, (theirs, mine), self.constants, strict=True)
            ]
        self.bank.write(slots, everyone, self.config.momentum)
        count = mean_over_processes(costs[0].new_tensor(float(len(keys))))
        return {"contrast": self.config.weight * torch.stack(costs).sum() / count}

    @torch.no_grad()
    def _look_up(
        self, vectors: Tensor, rows: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the n boxes here are compared with, (n, K + 1) slots, and of the N boxes of all processes the vectors (2, N, D) and slots (N,).

        vectors (2, n, D). rows (n, 3): image id, box, label. Gives new boxes their slots, and sets Z at the first time.
        """
        everyone, begin = gather_rows(vectors.transpose(0, 1))
        everyone = everyone.transpose(0, 1)
        keys, _ = gather_rows(rows)
        slots, new = self.bank.register(keys[:, :2], keys[:, 2])
        if len(slots) and not self.constants.any():
            scores = (
                everyone.flip(0) @ self.bank.vectors.transpose(1, 2) / self.config.temperature
            )  # of L_t, then of L_s
            self.constants.copy_(scores.exp().mean((1, 2)).flip(0) * self.config.capacity)
        if self.config.begin == "own":
            self.bank.write(slots[new], everyone[:, new], 0.0)
        own = slots[begin : begin + len(rows)]
        return self.bank.draw(own, self.config.negatives, self.config.positives == "relax", generator), everyone, slots
