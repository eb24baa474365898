"""What rows without kpt_shape are taken for: on random sets, never the wrong kind."""

from pathlib import Path

import numpy as np
import pytest

from detdistill.data.yolo_rows import choose_reading
from detdistill.errors import UserError

SETS = 30


def random_box(random: np.random.Generator) -> np.ndarray:
    size = random.uniform(0.1, 0.6, 2)
    return np.concatenate([size / 2 + random.uniform(size=2) * (1 - size), size])


def polygon(random: np.random.Generator, count: int) -> np.ndarray:
    """A star-shaped polygon."""
    box, turns = random_box(random), np.sort(random.uniform(0, 2 * np.pi, count))
    radii = random.uniform(0.6, 1, count) / 2
    return box[:2] + np.stack([np.cos(turns) * radii, np.sin(turns) * radii], 1) * box[2:]


def pose(random: np.random.Generator, count: int) -> np.ndarray:
    box = random_box(random)
    return np.concatenate([box, (box[:2] + (random.uniform(size=(count, 2)) - 0.5) * box[2:]).ravel()])


def kinds(make, count: int, rows: int, path: Path) -> set[str]:
    """What SETS random sets are taken for."""
    random, found = np.random.default_rng(count), set()
    for _ in range(SETS):
        lines = [" ".join(["0", *(f"{value:.5f}" for value in make(random, count).ravel())]) for _ in range(rows)]
        path.write_text("\n".join(lines))
        try:
            found.add("pose" if choose_reading([path], None).pose else "polygon")
        except UserError:
            found.add("refused")
    return found


@pytest.mark.parametrize("count", [3, 4, 6, 12])
def test_random_polygons_are_never_key_points(count: int, tmp_path: Path) -> None:
    assert kinds(polygon, count, 3, tmp_path / "a.txt") <= {"polygon", "refused"}
    assert kinds(polygon, count, 20, tmp_path / "a.txt") == {"polygon"}


@pytest.mark.parametrize("count", [1, 3, 5, 17])
def test_random_key_points_are_never_polygons(count: int, tmp_path: Path) -> None:
    assert kinds(pose, count, 3, tmp_path / "a.txt") <= {"pose", "refused"}
    if count >= 5:
        assert kinds(pose, count, 20, tmp_path / "a.txt") == {"pose"}
