"""One-to-one pairs with the lowest total cost, for many problems at once."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

LARGE = 1e30  # replaces a cost that isn't finite; such a pair is used only if no other pair is left
THREADED = 10_000  # problems of this many costs or more use threads; scipy's solver releases the interpreter lock


def pair_queries(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the pairs with the lowest total cost, in ascending order of the rows.

    cost: (Q_student, Q_teacher). Returns two tensors of min(Q_student, Q_teacher) indices.
    """
    (columns,) = pair_all(cost[None])
    rows = (columns >= 0).nonzero()[:, 0]
    return rows, columns[rows]


def pair_all(costs: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """The column paired with each row, for P problems: costs (P, Q, G) to (P, Q), -1 for a row without a pair.

    counts: for each problem, the number of its columns that are real; the columns behind them are padding. None means
    all. If Q > G, G rows are paired; otherwise all rows are paired.
    The costs are moved to the CPU in one transfer. The result is on the device of the costs.
    """
    table = np.nan_to_num(costs.detach().float().cpu().numpy(), nan=LARGE, posinf=LARGE, neginf=-LARGE)
    sizes = [table.shape[2]] * len(table) if counts is None else list(counts)
    problems = [cost[:, :size] for cost, size in zip(table, sizes, strict=True)]
    if len(table) and table[0].size >= THREADED:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            solutions = list(pool.map(linear_sum_assignment, problems))
    else:
        solutions = [linear_sum_assignment(problem) for problem in problems]
    paired = np.full(table.shape[:2], -1, dtype=np.int64)  # (P, Q)
    for partners, (rows, columns) in zip(paired, solutions, strict=True):
        partners[rows] = columns
    return torch.from_numpy(paired).to(costs.device)
