"""`bench/tiles.py` measures large pictures with and without tiles."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detdistill.data import open_data
from detdistill.recipe import DataConfig
from detdistill.types import Detections


@pytest.fixture
def tiles(bench: Callable[[str], Any]) -> Any:
    """The module `tiles`."""
    return bench("tiles")


def test_true_boxes_of_the_large_picture_are_true_in_its_images(tiles: Any) -> None:
    split = open_data(DataConfig(path="shapes:8")).split("train")
    (sheet, cells), _ = tiles.mosaics(split, 2)
    boxes = torch.cat([record.boxes + torch.tensor([left, top, left, top]) for record, left, top in cells])
    labels = torch.cat([record.labels for record, _, _ in cells])
    parts = tiles.divided(Detections(boxes, torch.ones(len(boxes)), labels), cells)
    for (record, left, top), part in zip(cells, parts, strict=True):
        assert torch.allclose(part.boxes, record.boxes) and torch.equal(part.labels, record.labels)
        assert sheet.getpixel((left, top)) == record.image().getpixel((0, 0))


def test_every_setting_is_measured(
    tiles: Any, teacher_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "tiles.json"
    options = f"--data shapes:8 --split train --side 2 --tiles 64 --device cpu --json {file} --model {teacher_run}"
    monkeypatch.setattr("sys.argv", ["tiles.py", *options.split()])
    assert tiles.main() == 0
    assert "tile 64" in capsys.readouterr().out
    result = json.loads(file.read_text())
    assert result["images"] == 8
    assert [row["setting"] for row in result["rows"]] == ["alone", "whole", "tile 64"]
    assert all(0 <= row["AP"] <= 100 and row["seconds"] > 0 for row in result["rows"])
