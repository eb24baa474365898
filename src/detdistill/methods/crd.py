"""CRD: contrast each instance with a memory of other instances. Tian, Krishnan and Isola, ICLR 2020, arXiv:1910.10699.

    o_k = exp(<m_k, v> / T) / Z
    L = -log o_0 / (o_0 + K/M) - sum over K negatives of log (K/M) / (o_k + K/M)
    term = weight * (L_s + L_t), mean over instances

v is the student's vector (in L_s) or the teacher's vector (in L_t) after a learned linear map to 128 values, scaled to
unit length. m_k are vectors in the memory of the other detector; k = 0 is the positive. T is the temperature. K is the
number of negatives and M the number of slots. After the loss, the slots of the batch are set to the normalized mean of
old and new vector.

The paper treats classifiers, where each image has one slot. Here an instance is a box with one vector
(`methods.shared.embeddings`). Its key is the image id and the box's index in the image. If augmentation removes boxes
(a crop), the index counts the remaining boxes. A slot can then temporarily hold the vectors of another box of the
image.

The following choices are ours, because the paper does not treat detectors. The memory has M slots (`capacity`). A box
gets a slot when it first occurs. When all slots are used, those assigned longest ago are reused. A data set may have
more boxes than slots, so a new slot starts with the box's own vectors (`begin: own`); otherwise its positive would be
the vectors of another box. `begin: random` is as published. Negatives are drawn from earlier boxes of another class, as
published. If there is only one class, they are drawn from other boxes. K is 4096, because the published 16384 is more
than the number of boxes of most detection sets. Z is M times the mean score against the whole memory at the first batch
with a box, while the memory is random. Then it stays fixed, as published (there: the mean over the drawn slots).

Slots, memory and Z are the same on every process. They are computed from the boxes of all processes and are saved with
the method. DistributedDataParallel broadcasts the buffers at each step: 1 kB per slot.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from detdistill.distributed import gather_rows, mean_over_processes
from detdistill.losses import contrast_scores, noise_contrast, unit
from detdistill.methods.crd_memory import InstanceBank
from detdistill.methods.method import Method, Weight
from detdistill.methods.shared.embeddings import EmbeddingConfig, InstanceEmbeddings, mean_per_box
from detdistill.types import DetectorInfo, DetectorOutput, Targets, TrainState


@dataclass(frozen=True)
class CRDConfig(EmbeddingConfig):
    """weight: weight of the term.
    negatives: K, the number of negatives per box.
    capacity: M, the number of slots of the memory.
    width: length of the learned vectors.
    temperature: T.
    momentum: share of the old vector in a memory update.
    positives: `exact` is the box's own slot; `relax` is any slot of its class.
    begin: initial vectors of a new slot. `own`: the vectors of its box. `random`: the vectors that the slot holds; they
        are random if the slot is used for the first time, as published.
    The other options: see `methods.shared.embeddings.EmbeddingConfig`.
    """

    weight: Weight = 0.8
    negatives: Annotated[int, Field(ge=1)] = 4096
    capacity: Annotated[int, Field(ge=2)] = 32768
    width: Annotated[int, Field(ge=1)] = 128
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.07
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    positives: Literal["exact", "relax"] = "exact"
    begin: Literal["own", "random"] = "own"


class CRD(Method):
    """See the module docstring. Terms: `contrast`."""

    name = "crd"
    group = "instances"
    paper = "arXiv:1910.10699"
    copies = "each object's embedding, contrasted with other classes"
    requires = "a level with the same stride on both sides, or RoI heads on both sides"
    reads = "neck features of boxes, or RoI embeddings"
    learns = "a linear map to 128 values per detector, a memory of instances"
    Config = CRDConfig
    constants: Tensor

    def __init__(self, config: CRDConfig, embeddings: InstanceEmbeddings):
        super().__init__()
        self.config, self.embeddings = config, embeddings
        self.need = self.student_need = embeddings.need
        self.maps = nn.ModuleList(nn.Linear(width, config.width) for width in embeddings.widths)  # student, teacher
        self.bank = InstanceBank(config.capacity, config.width)
        self.register_buffer("constants", torch.zeros(2))  # Z of L_s and of L_t; 0 before the first batch with a box

    @classmethod
    def build(cls, config: CRDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError if `embedding: roi` is set and a detector has no RoI embeddings."""
        return cls(config, InstanceEmbeddings.build(cls.name, config, student, teacher))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`. Updates the memory.

        Raises ValueError if `state.ids` is None, and UserError if a batch has more boxes than the memory has slots.
        """
        if state.ids is None:
            raise ValueError("method crd stores boxes by image: pass state.ids, the image ids of the batch")
        config = self.config
        instances = mean_per_box(self.embeddings(student_output, teacher_output, targets))
        image_ids = state.ids.to(instances.images)[instances.images]  # (n,)
        labels = torch.cat(
            [
                image_labels[instances.boxes[instances.images == image]]
                for image, image_labels in enumerate(targets.labels)
            ]
        )
        rows = torch.stack([image_ids, instances.boxes, labels], dim=1)  # (n, 3)
        with torch.autocast(instances.student.device.type, enabled=False):  # exp(1 / T) overflows half precision
            dtype = self.bank.vectors.dtype
            student_vectors = unit(self.maps[0](instances.student.to(dtype)))  # (n, D)
            teacher_vectors = unit(self.maps[1](instances.teacher.to(dtype)))  # (n, D)
            vectors = torch.stack([student_vectors, teacher_vectors])  # (2, n, D)
            index, all_vectors, all_slots = self.look_up(vectors, rows, state.generator)
            # A copy, because the backward pass needs the memory before it is updated.
            student_memory, teacher_memory = self.bank.vectors.clone()  # (M, D) each
            student_scores = contrast_scores(student_vectors, teacher_memory, index, config.temperature)  # (n, K + 1)
            teacher_scores = contrast_scores(teacher_vectors, student_memory, index, config.temperature)
            student_loss = noise_contrast(student_scores / self.constants[0], config.capacity).sum()
            teacher_loss = noise_contrast(teacher_scores / self.constants[1], config.capacity).sum()
        self.bank.write(all_slots, all_vectors, config.momentum)
        count = mean_over_processes(student_loss.new_tensor(float(len(rows))))
        return {"contrast": config.weight * (student_loss + teacher_loss) / count}

    @torch.no_grad()
    def look_up(
        self, vectors: Tensor, rows: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Slots to compare the n boxes of this process with, and what to write for the N boxes of all processes.

        vectors (2, n, D). rows (n, 3): image id, box index, label. Returns slots (n, K + 1), vectors (2, N, D) and
        slots (N,). Assigns slots to new boxes. Sets Z at the first batch with a box.
        """
        all_vectors, begin = gather_rows(vectors.transpose(0, 1))
        all_vectors = all_vectors.transpose(0, 1)  # (2, N, D)
        all_rows, _ = gather_rows(rows)  # (N, 3)
        slots, is_new = self.bank.register(all_rows[:, :2], all_rows[:, 2])
        if len(slots) and not self.constants.any():
            # Each detector's vectors against the memory of the other: (2, N, M), first L_t, then L_s.
            scores = all_vectors.flip(0) @ self.bank.vectors.transpose(1, 2) / self.config.temperature
            self.constants.copy_(scores.exp().mean((1, 2)).flip(0) * self.config.capacity)
        if self.config.begin == "own":
            self.bank.write(slots[is_new], all_vectors[:, is_new], 0.0)
        own_slots = slots[begin : begin + len(rows)]  # (N,) -> (n,)
        relax = self.config.positives == "relax"
        return self.bank.draw(own_slots, self.config.negatives, relax, generator), all_vectors, slots
