"""Folders and files without a known layout: what was found there, and what the nearest layouts lack."""

from pathlib import Path

import pytest

from detdistill.errors import UserError

from .builders import PICTURE, opened, pictures, write

ROW = "0 0.5 0.5 0.5 0.5"
CASES = {
    "images alone": (
        pictures("photos/a.jpg", "photos/b.JPG", "c.png"),
        "Found 2 .jpg, 1 .png in the folders photos. Nearest layouts: YOLO lacks label files (*.txt, one per image); "
        "Pascal VOC lacks annotation files (*.xml, one per image); correct the folder or give explicit paths",
    ),
    "labels without class names": (
        {"images/a.jpg": PICTURE, "labels/a.txt": ROW},
        "Found 1 .jpg, 1 .txt in the folders images, labels. Nearest layouts: YOLO lacks class names (data.yaml or "
        "classes.txt; 1 label file found); Pascal VOC lacks annotation files",
    ),
    "labels with other names": (
        {"images/a.jpg": PICTURE, "labels/b.txt": ROW, "classes.txt": "cat"},
        "Nearest layouts: YOLO lacks label files with the names of images",
    ),
    "XML of another tool": (
        {"a.jpg": PICTURE, "a.xml": "<dataset/>"},
        "Nearest layouts: Pascal VOC lacks XML files that begin with <annotation> (a.xml begins with <dataset>); CVAT",
    ),
    "JSON of another tool": (
        {"a.jpg": PICTURE, "a.json": {"regions": []}},
        "Nearest layouts: COCO JSON lacks a file with images, annotations and categories beside its images (a.json is "
        "none); LabelMe lacks files with shapes and imagePath (a.json has none)",
    ),
    "annotations without images": (
        {"a.xml": "<dataset/>"},
        "Found 1 .xml. Nearest layouts: Pascal VOC lacks images and XML files that begin with <annotation>",
    ),
    "nothing": ({".hidden": "x"}, "the folder has no files; give the folder of a data set"),
}


@pytest.mark.parametrize(("files", "message"), CASES.values(), ids=CASES)
def test_the_message_says_what_is_there_and_what_is_lacking(files: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        opened(write(tmp_path, files))
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    write(tmp_path, {"a.csv": "a,b"})
    message = "a.csv: not a file of a data set; give a COCO JSON file, data.yaml, obj.data, CVAT's annotations.xml, or"
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "a.csv")
