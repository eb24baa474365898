"""The memory of CRD: one slot per instance, the same on every process."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detdistill.errors import UserError

EMPTY = torch.iinfo(torch.long).max  # label of an empty slot; sorts after all class labels
DRAWS = 2**40  # far more than the number of slots, so that `draw % slots` is almost uniform


class InstanceBank(nn.Module):
    """M slots for instances. Each slot holds one vector of the student and one of the teacher, (D,) each.

    An instance gets a slot when it first occurs. When all slots are used, the slots assigned longest ago are reused,
    except slots of instances in the current batch. All buffers are saved, so that a resumed run continues exactly.
    Every process must write the rows of all processes: see `gather_rows`.

    vectors (2, M, D): of student and teacher. Their initial values are uniform, with the variance of the values of a
    unit vector.
    keys (M, 2): (image id, box index). labels (M,). turn (): the next slot to use.
    """

    vectors: Tensor
    keys: Tensor
    labels: Tensor
    turn: Tensor

    def __init__(self, capacity: int, width: int):
        super().__init__()
        bound = (3 / width) ** 0.5
        self.register_buffer("vectors", torch.empty(2, capacity, width).uniform_(-bound, bound))
        self.register_buffer("keys", torch.full((capacity, 2), -1))
        self.register_buffer("labels", torch.full((capacity,), EMPTY))
        self.register_buffer("turn", torch.tensor(0))

    @torch.no_grad()
    def register(self, keys: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The slot of each instance and whether the instance is new, (n,) each. keys (n, 2), labels (n,): of instances.

        Raises UserError if the batch has more instances than there are slots.
        """
        instances, row = keys.unique(dim=0, return_inverse=True)  # (u, 2), (n,)
        capacity = len(self.keys)
        if len(instances) > capacity:
            raise UserError(
                f"method crd: a batch has {len(instances)} instances, but the memory has {capacity} slots; "
                "set a larger methods.crd.capacity"
            )
        index, known_slots = (instances[:, None] == self.keys).all(-1).nonzero(as_tuple=True)  # (u, M) to pairs
        is_new = torch.ones(len(instances), dtype=torch.bool, device=keys.device)
        is_new[index] = False
        order = (self.turn + torch.arange(capacity, device=keys.device)) % capacity  # oldest slot first
        is_used = torch.zeros(capacity, dtype=torch.bool, device=keys.device)
        is_used[known_slots] = True
        free_slots = order[~is_used[order]][: int(is_new.sum())]
        slots = torch.empty(len(instances), dtype=torch.long, device=keys.device)
        slots[index], slots[is_new] = known_slots, free_slots
        self.keys[free_slots] = instances[is_new]
        if len(free_slots):
            self.turn.copy_((free_slots[-1] + 1) % capacity)
        self.labels[slots[row]] = labels
        return slots[row], is_new[row]  # (u,) -> (n,)

    @torch.no_grad()
    def write(self, slots: Tensor, vectors: Tensor, momentum: float) -> None:
        """Replace a slot's m by momentum m + (1 - momentum) v, divided by its length.

        slots (n,), vectors v (2, n, D). A slot that is listed more than once gets the mean of its vectors.
        """
        places, row, counts = slots.unique(return_inverse=True, return_counts=True)  # (u,), (n,), (u,)
        mean = vectors.new_zeros((2, len(places), vectors.shape[-1])).index_add(1, row, vectors) / counts[:, None]
        updated = momentum * self.vectors[:, places] + (1 - momentum) * mean.to(self.vectors.dtype)  # (2, u, D)
        self.vectors[:, places] = F.normalize(updated, dim=-1)

    def draw(self, slots: Tensor, negatives: int, relax: bool, generator: torch.Generator | None) -> Tensor:
        """Slots to compare each instance with, (n, negatives + 1). The first column is the positive.

        slots (n,): of the instances.
        The positive is the instance's own slot or, with `relax`, a random slot of its class.
        The negatives are random slots of other classes, drawn with replacement. If all filled slots have this class,
        they are random other filled slots. If no other slot is filled, they are random other slots.
        """
        sorted_labels, order = self.labels.sort(stable=True)  # (M,), (M,), empty slots last
        labels, filled = self.labels[slots], (self.labels != EMPTY).sum()  # (n,), ()
        begin = torch.searchsorted(sorted_labels, labels)  # (n,): the class's interval in the sorted slots
        end = torch.searchsorted(sorted_labels, labels, right=True)  # (n,)
        is_only_class = end - begin == filled
        # The excluded slots are one interval of the sorted slots: the instance's class, or only its own slot.
        excluded_begin = torch.where(is_only_class, order.argsort()[slots], begin)
        excluded = torch.where(is_only_class, 1, end - begin)
        candidates = torch.where(is_only_class & (filled == 1), len(order), filled) - excluded  # (n,)
        places = self._draws((len(slots), negatives), generator) % candidates[:, None]  # (n, K)
        places = places + excluded[:, None] * (places >= excluded_begin[:, None])  # skip the interval
        positive = slots
        if relax:
            positive = order[begin + self._draws((len(slots),), generator) % (end - begin)]
        return torch.cat([positive[:, None], order[places]], dim=1)  # (n, K + 1)

    def _draws(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Random integers in 0..DRAWS - 1, drawn on the generator's device."""
        device = self.labels.device if generator is None else generator.device
        return torch.randint(DRAWS, shape, generator=generator, device=device).to(self.labels.device)
