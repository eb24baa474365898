"""The backward pass of the young part of a graph."""

import torch
from torch import nn

from detdistill.inspection.backward import backward_to, graph_mark


def test_the_pass_stops_at_the_older_part_and_leaves_it_intact() -> None:
    older, younger = nn.Linear(2, 3), nn.Linear(3, 1)
    features = older(torch.ones(4, 2)).tanh()
    mark = graph_mark()
    backward_to((younger(features) + younger(features.square())).sum(), mark)
    assert older.weight.grad is None
    expected = torch.autograd.grad((younger(features) + younger(features.square())).sum(), younger.weight)[0]
    assert torch.equal(younger.weight.grad, expected)  # complete: nothing of the young part was left out
    features.sum().backward()
    assert older.weight.grad is not None


def test_everything_that_is_younger_runs_before_the_pass_stops() -> None:
    ran: list[str] = []
    base = torch.ones(2, requires_grad=True) * 2
    mark = graph_mark()
    left, right = base.exp(), base.sin()
    for name, part in (("left", left), ("right", right)):
        part.grad_fn.register_prehook(lambda gradients, name=name: ran.append(name))
    base.grad_fn.register_prehook(lambda gradients: ran.append("base"))
    backward_to((left * right).sum() + base.sum(), mark)
    assert sorted(ran) == ["left", "right"] or (sorted(ran[:2]) == ["left", "right"] and ran[2:] == ["base"])


def test_a_term_without_gradient_needs_no_pass() -> None:
    backward_to(torch.zeros(()), graph_mark())
