"""A memory of instances, the same on every process."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detdistill.errors import UserError

EMPTY = torch.iinfo(torch.long).max  # label of a slot that no instance has yet: sorts behind all others
DRAWS = 2**40  # far more than slots: taking the remainder hardly favours the first ones


class InstanceBank(nn.Module):
    """Slots for instances, each with a vector of the student and one of the teacher. All is saved, so that a resumed run goes on.

    vectors (2, M, D): student's, teacher's; random at first, uniform with the variance of a unit vector's numbers. keys (M, 2): (image id, box).
    labels (M,). turn (): the slot whose turn it is. A slot is given to an instance when it is first seen; with none left, those given longest ago
    are given anew, but none that this batch has. What is written must be the rows of all processes: see `gather_rows`.
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
        """The slots (n,) of instances with these keys (n, 2) and labels (n,), and which (n,) of them are new. Raises UserError where the batch has
        more instances than there are slots."""
        given, row = keys.unique(dim=0, return_inverse=True)
        capacity = len(self.keys)
        if len(given) > capacity:
            raise UserError(
                f"method crd: {len(given)} instances in one batch don't fit {capacity} slots; set a larger methods.crd.capacity"
            )
        index, known = (given[:, None] == self.keys).all(-1).nonzero(as_tuple=True)
        new = torch.ones(len(given), dtype=torch.bool, device=keys.device)
        new[index] = False
        order = (self.turn + torch.arange(capacity, device=keys.device)) % capacity
        taken = torch.zeros(capacity, dtype=torch.bool, device=keys.device)
        taken[known] = True
        free = order[~taken[order]][: int(new.sum())]
        slots = torch.empty(len(given), dtype=torch.long, device=keys.device)
        slots[index], slots[new] = known, free
        self.keys[free] = given[new]
        if len(free):
            self.turn.copy_((free[-1] + 1) % capacity)
        self.labels[slots[row]] = labels
        return slots[row], new[row]

    @torch.no_grad()
    def write(self, slots: Tensor, vectors: Tensor, momentum: float) -> None:
        """m to (momentum m + (1 - momentum) v) / its length. slots (n,); v: vectors (2, n, D), their mean where a slot comes more than once."""
        places, row, counts = slots.unique(return_inverse=True, return_counts=True)
        mean = vectors.new_zeros((2, len(places), vectors.shape[-1])).index_add(1, row, vectors) / counts[:, None]
        moved = momentum * self.vectors[:, places] + (1 - momentum) * mean.to(self.vectors.dtype)
        self.vectors[:, places] = F.normalize(moved, dim=-1)

    def draw(self, slots: Tensor, negatives: int, relax: bool, generator: torch.Generator | None) -> Tensor:
        """(n, negatives + 1) slots to compare the instances in `slots` (n,) with, the first column their positive: their own slot or, with
        `relax`, any of their class. Negatives are of other classes, with replacement; where no slot is, any other slot that has an instance,
        and where none has, any other."""
        ordered, order = self.labels.sort(stable=True)
        labels, filled = self.labels[slots], (self.labels != EMPTY).sum()
        begin, end = torch.searchsorted(ordered, labels), torch.searchsorted(ordered, labels, right=True)
        alone = end - begin == filled  # nothing of another class has been seen
        # Slots sorted by class: a negative is anywhere but in one stretch, that of the own class, or of the slot itself.
        first = torch.where(alone, order.argsort()[slots], begin)
        left_out = torch.where(alone, 1, end - begin)
        pool = torch.where(alone & (filled == 1), len(order), filled) - left_out
        drawn = self._draws((len(slots), negatives), generator) % pool[:, None]
        drawn = drawn + left_out[:, None] * (drawn >= first[:, None])
        positive = slots
        if relax:
            positive = order[begin + self._draws((len(slots),), generator) % (end - begin)]
        return torch.cat([positive[:, None], order[drawn]], dim=1)

    def _draws(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        device = self.labels.device if generator is None else generator.device
        return torch.randint(DRAWS, shape, generator=generator, device=device).to(self.labels.device)
