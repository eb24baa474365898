"""One thread per test process, and a trained run for the tests of `run` and `cli`.

With two threads in each of two test processes, a step takes ten times as long.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line if the report was not tested in a browser, since skipped tests are easily overlooked."""
    if any("NO BROWSER" in str(skipped.longrepr) for skipped in terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_line(
            "NO BROWSER: the report was NOT tested in a browser (sh tests/browser.sh)", red=True
        )


@pytest.fixture(scope="session")
def teacher_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a small GFL that was trained for two steps from seed 1. Tests must not modify it."""
    from detdistill import run
    from tests.run.recipes import small_recipe

    recipe = small_recipe(train={"max_steps": 2, "seed": 1})
    return run.train(recipe, tmp_path_factory.mktemp("runs") / "teacher").out
