"""Small data sets, written by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.voc_text import voc_object

WriteImage = Callable[..., Path]


@pytest.fixture
def write_image() -> WriteImage:
    """write_image(path, width, height, orientation=1) writes an image file and returns its path.

    The left half of the stored pixels is dark and the right half is light.
    """

    def write(path: Path, width: int = 40, height: int = 20, orientation: int = 1) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((height, width, 3), 200, dtype=np.uint8)
        pixels[:, : width // 2] = 20
        image = Image.fromarray(pixels)
        if orientation > 1:
            exif = Image.Exif()
            exif[0x0112] = orientation
            image.save(path, exif=exif.tobytes())
        else:
            image.save(path)
        return path

    return write


@pytest.fixture
def coco_set(tmp_path: Path, write_image: WriteImage) -> Callable[..., Path]:
    """coco_set(**changes) writes a data set in COCO layout and returns its folder.

    It has train and val with two 40 x 20 images each, and the categories 3 (cat) and 7 (dog). The changes replace keys
    of train's JSON.
    """

    def write(**changes: Any) -> Path:
        for split in ("train", "val"):
            for index in (1, 2):
                write_image(tmp_path / f"{split}2017" / f"{index}.png")
            content = {
                "images": [
                    {"id": index * 10, "file_name": f"{index}.png", "width": 40, "height": 20} for index in (1, 2)
                ],
                "annotations": [
                    {"id": 1, "image_id": 10, "category_id": 7, "bbox": [1, 2, 10, 5], "area": 33.5, "iscrowd": 0},
                    {"id": 2, "image_id": 10, "category_id": 3, "bbox": [20, 0, 20, 20], "area": 400, "iscrowd": 1},
                ],
                "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
            }
            content |= changes if split == "train" else {}
            path = tmp_path / "annotations" / f"instances_{split}2017.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content))
        return tmp_path

    return write


@pytest.fixture
def voc_set(tmp_path: Path, write_image: WriteImage) -> Callable[..., Path]:
    """voc_set(a=..., b=...) writes a data set in VOC layout and returns its folder.

    It has the 40 x 20 images a (in train) and b (in val); trainval has both. The arguments are the XML inside the
    annotation tag of the image.
    """

    def write(**bodies: str) -> Path:
        standard = {"a": voc_object("dog", (1, 1, 40, 20)), "b": voc_object("cat", (11, 6, 20, 10))}
        for stem, body in (standard | bodies).items():
            write_image(tmp_path / "JPEGImages" / f"{stem}.png")
            path = tmp_path / "Annotations" / f"{stem}.xml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"<annotation><size><width>40</width><height>20</height></size>{body}</annotation>")
        lists = tmp_path / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        for name, stems in (("train", "a"), ("val", "b"), ("trainval", "ab")):
            (lists / f"{name}.txt").write_text("\n".join(stems) + "\n")
        (lists / "dog_train.txt").write_text("a 1\n")
        return tmp_path

    return write


@pytest.fixture
def yolo_set(tmp_path: Path, write_image: WriteImage) -> Callable[..., Path]:
    """yolo_set(lines, yaml) writes a data set in YOLO layout and returns its folder.

    It has train with the images a (with these label lines) and b (without a label file), and val with c; all 40 x 20.
    """

    def write(
        lines: str = "1 0.5 0.5 0.5 0.5\n",
        yaml: str = "path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n",
    ) -> Path:
        for split, stem in (("train", "a"), ("train", "b"), ("val", "c")):
            write_image(tmp_path / "images" / split / f"{stem}.png")
            (tmp_path / "labels" / split).mkdir(parents=True, exist_ok=True)
        (tmp_path / "labels" / "train" / "a.txt").write_text(lines)
        (tmp_path / "labels" / "val" / "c.txt").write_text("0 0.25 0.5 0.5 1\n")
        (tmp_path / "data.yaml").write_text(yaml)
        return tmp_path

    return write
