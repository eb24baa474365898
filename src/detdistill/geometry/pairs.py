"""One-to-one pairs of least total cost, of many problems at once."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

LARGE = 1e30  # in place of a cost that isn't finite: such a pair is taken only where nothing else is left
THREADED = (
    10_000  # cells of a problem from which a thread of its own pays; scipy's solver lets go of the interpreter's lock
)


def pair_queries(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns (min(Q_student, Q_teacher),) of the pairs whose total cost is least, rows ascending; cost (Q_student, Q_teacher)."""
    (columns,) = pair_all(cost[None])
    rows = (columns >= 0).nonzero()[:, 0]
    return rows, columns[rows]


def pair_all(costs: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """(P, Q, G) costs of P problems to (P, Q): the column paired with each row, -1 for none. One transfer, whatever the device.

    counts: of each problem, how many of its first columns are there; none: all. Where Q > G, G rows are paired, else all are.
    """
    table = np.nan_to_num(costs.detach().float().cpu().numpy(), nan=LARGE, posinf=LARGE, neginf=-LARGE)
    sizes = [table.shape[2]] * len(table) if counts is None else list(counts)
    problems = [cost[:, :size] for cost, size in zip(table, sizes, strict=True)]
    if table[0].size >= THREADED if len(table) else False:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            solved = list(pool.map(linear_sum_assignment, problems))
    else:
        solved = [linear_sum_assignment(problem) for problem in problems]
    paired = np.full(table.shape[:2], -1, dtype=np.int64)
    for row, (rows, columns) in zip(paired, solved, strict=True):
        row[rows] = columns
    return torch.from_numpy(paired).to(costs.device)
