"""Boxes on image files."""

from pathlib import Path

import pytest
from PIL import Image

from tests.cli.commands import detdistill

from .recipes import read_json


def predict(model: Path, out: Path, *images: Path) -> int:
    """Run `predict` on the images, and return its exit code."""
    paths = " ".join(map(str, images))
    return detdistill(f"predict {paths} --model {model} --device cpu --out {out}")


def test_boxes_are_in_pixels_of_the_image_files(teacher_run: Path, tmp_path: Path) -> None:
    (tmp_path / "images/deeper").mkdir(parents=True)
    Image.new("RGB", (200, 50), "red").save(tmp_path / "images/a.jpg")
    Image.effect_noise((90, 300), 80).save(tmp_path / "images/deeper/a.jpg")
    Image.effect_noise((120, 120), 80).save(tmp_path / "b.bmp")
    out = tmp_path / "out"
    assert predict(teacher_run, out, tmp_path / "images", tmp_path / "b.bmp") == 0
    assert sorted(path.name for path in out.iterdir()) == ["1-a.jpg", "2-a.jpg", "b.bmp.png", "predictions.json"]
    predictions = read_json(out / "predictions.json")
    sizes = {1: (200, 50), 2: (90, 300), 3: (120, 120)}
    assert predictions
    for prediction in predictions:
        assert prediction.keys() == {"image_id", "file_name", "category_id", "bbox", "score"}
        assert 1 <= prediction["category_id"] <= 6
        x, y, width, height = prediction["bbox"]
        image_width, image_height = sizes[prediction["image_id"]]
        assert x >= 0
        assert y >= 0
        assert x + width <= image_width + 1e-3
        assert y + height <= image_height + 1e-3
    assert predict(teacher_run, out, tmp_path / "images", tmp_path / "b.bmp") == 2  # `out` is not empty


def test_an_unreadable_image_is_named_and_nothing_is_written(
    teacher_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "broken.png").write_bytes(b"not an image")
    assert predict(teacher_run, tmp_path / "out", tmp_path / "broken.png") == 2
    message = capsys.readouterr().err
    assert "broken.png" in message and "restore the file or remove it" in message and "annotations" not in message
    assert not (tmp_path / "out").exists()
