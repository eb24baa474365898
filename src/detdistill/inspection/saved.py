"""Bytes of tensors: those that autograd keeps for the backward pass, and those that an output holds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


class Kept:
    """Storages by address, each counted once. They must stay alive while they are counted."""

    def __init__(self, known: Any = ()) -> None:
        """known: tensors, or anything that holds tensors, that are not counted."""
        self._sizes: dict[int, int] = {}
        self._known = {_address(tensor) for tensor in tensors(known)}

    def add(self, tensor: Tensor) -> None:
        """Count the storage of the tensor, unless it is known."""
        if _address(tensor) not in self._known:
            self._sizes[_address(tensor)] = tensor.untyped_storage().nbytes()

    @property
    def bytes(self) -> int:
        """The sum of the sizes."""
        return sum(self._sizes.values())

    def ignore(self, other: "Kept") -> None:
        """Do not count what `other` has counted."""
        self._known |= other._sizes.keys()


@contextmanager
def saving(kept: Kept) -> Iterator[None]:
    """In this context, `kept` counts every tensor that autograd saves for the backward pass."""

    def pack(tensor: Tensor) -> Tensor:
        kept.add(tensor)
        return tensor.detach()  # the tensor itself would refer to its own graph and never be freed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def bytes_of(value: Any) -> int:
    """Bytes of all tensors in a dataclass, mapping or sequence, each storage counted once."""
    kept = Kept()
    for tensor in tensors(value):
        kept.add(tensor)
    return kept.bytes


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a tensor, dataclass, mapping, list, tuple or set."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from tensors([getattr(value, item.name) for item in fields(value)])


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
