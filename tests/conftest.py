"""One core per test process: two threads of two busy processes fight, and a torch step becomes ten times slower."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
