"""Bytes of tensors, each storage counted once."""

import torch

from detdistill.inspection.saved import Kept, bytes_of, saving, tensors
from detdistill.types import Pyramid


def test_a_storage_counts_once_wherever_it_is() -> None:
    level = torch.zeros(1, 2, 4, 4)
    pyramid = Pyramid((level,), (8,), torch.tensor([[32, 32]]))
    assert bytes_of(pyramid) == 4 * 32 + 8 * 2
    assert bytes_of({"a": level, "b": [level[:, :1], (level.flatten(),)]}) == 4 * 32
    assert len(list(tensors([pyramid, {"text": "no tensor"}]))) == 2


def test_autograd_keeps_what_the_backward_pass_needs() -> None:
    values = torch.ones(10, requires_grad=True)
    kept = Kept([values])
    with saving(kept):
        squares = values.square().exp()  # square keeps `values`, which is known, and exp its result
    assert kept.bytes == 40
    more = Kept()
    more.ignore(kept)
    with saving(more):
        squares.exp().sum().backward()
    assert more.bytes == 40  # the result of the second exp
    assert torch.allclose(values.grad, torch.full((10,), 2 * torch.e * torch.exp(torch.tensor(torch.e)).item()))
