"""The backward pass of a method alone, without that of the student, which the task losses need anyway."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node


class _ReachedError(Exception):
    """The backward pass has come to the part of the graph that the student's forward pass made."""


def graph_mark() -> int:
    """A number that tells the graph nodes that exist now from those that operations after this call will make."""
    node: Any = torch.zeros((), requires_grad=True).clone().grad_fn
    return int(node._sequence_nr())


def backward_to(term: Tensor, mark: int) -> None:
    """The backward pass of a scalar through the nodes that were made after `mark`. It stops at the first older node.

    autograd runs the nodes that were made last first, so all younger nodes have run by then. Parameters that only the
    younger part uses get their gradients. The older part stays as it was, for another backward pass.
    """
    if not term.requires_grad:
        return

    def stop(gradients: tuple[Tensor, ...]) -> None:
        raise _ReachedError

    handles = [node.register_prehook(stop) for node in _first_older(term.grad_fn, mark)]
    try:
        term.backward()
    except _ReachedError:
        pass
    finally:
        for handle in handles:
            handle.remove()


def _first_older(root: Node | None, mark: int) -> list[Node]:
    """The nodes that were made before `mark` and that a younger node leads to."""
    waiting, seen, older = [root], set(), []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        number: Any = node
        if number._sequence_nr() <= mark:  # parameters have the largest number there is
            older.append(node)
        else:
            waiting.extend(following for following, _ in node.next_functions)
    return older
