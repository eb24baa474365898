"""One-to-one pairs with the lowest total cost."""

from itertools import permutations

import torch
from hypothesis import given
from hypothesis import strategies as st

from detdistill.geometry import pair_all, pair_queries
from detdistill.geometry import pairs as module


def test_pairs_by_hand():
    rows, columns = pair_queries(torch.tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]]))  # 1 + 2 + 2 = 5
    assert rows.tolist() == [0, 1, 2]
    assert columns.tolist() == [1, 0, 2]
    rows, columns = pair_queries(torch.tensor([[5.0], [1.0], [3.0]]))
    assert (rows.tolist(), columns.tolist()) == ([1], [0])


@given(seed=st.integers(0, 999), rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_no_other_pairs_cost_less(seed: int, rows: int, columns: int):
    cost = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    paired_rows, paired_columns = pair_queries(cost)
    assert len(paired_rows) == min(rows, columns)
    assert len(set(paired_columns.tolist())) == len(paired_columns)
    table = cost if rows <= columns else cost.t()
    orders = permutations(range(table.shape[1]), table.shape[0])
    lowest = min(sum(table[i, j] for i, j in enumerate(order)) for order in orders)
    torch.testing.assert_close(cost[paired_rows, paired_columns].sum(), torch.as_tensor(lowest))


def test_many_problems_are_solved_like_single_problems(monkeypatch):
    costs = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(1))
    counts = [6, 0, 2]
    paired = pair_all(costs, counts)
    monkeypatch.setattr(module, "THREADED", 1)
    assert torch.equal(pair_all(costs, counts), paired)
    assert (paired[1] == -1).all()
    assert sorted(paired[2][paired[2] >= 0].tolist()) == [0, 1]
    rows, columns = pair_queries(costs[0])
    assert torch.equal(paired[0][rows], columns)


def test_costs_that_are_not_finite_are_chosen_last():
    nan, inf = float("nan"), float("inf")
    _, columns = pair_queries(torch.tensor([[nan, 1.0], [2.0, inf]]))
    assert columns.tolist() == [1, 0]
