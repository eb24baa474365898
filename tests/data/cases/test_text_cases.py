"""Text of any encoding, blanks where they do not belong, and names of other machines."""

from pathlib import Path

import pytest

from detdistill.recipe import load

from .builders import PICTURE, opened, pictures, read, voc, write

DOG = ("dog", 1, 1, 10, 10)
DOG_BOX = ("dog", 0, 0, 10, 10)
DECLARED = '<?xml version="1.0" encoding="{}"?>\n' + voc(("Übung", *DOG[1:]))

XML = {
    "BOM": DECLARED.format("utf-8").encode("utf-8-sig"),
    "UTF-16 with a declaration": DECLARED.format("utf-16").encode("utf-16"),
    "UTF-16 without a mark": DECLARED.format("utf-16").encode("utf-16-le"),
    "UTF-16 declared as UTF-8": DECLARED.format("utf-8").encode("utf-16"),
    "UTF-8 declared as UTF-16": DECLARED.format("utf-16").encode(),
    "Latin-1": DECLARED.format("iso-8859-1").encode("latin-1"),
    "GBK": DECLARED.format("gbk").replace("Übung", "猫").encode("gbk"),
    "lines end with CR": DECLARED.format("utf-8").replace("\n", "\r").encode(),
    "blank before the declaration": b"\r\n " + DECLARED.format("utf-8").encode(),
    "no declaration": voc(("Übung", *DOG[1:])).encode(),
}


@pytest.mark.parametrize("content", XML.values(), ids=XML)
def test_xml_of_any_encoding(content: bytes, tmp_path: Path) -> None:
    data = opened(write(tmp_path, {"train/a.jpg": PICTURE, "train/a.xml": content}))
    assert data.classes in (("Übung",), ("猫",))
    assert read(data)["train"]["a.jpg"] == [(data.classes[0], *DOG_BOX[1:])]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_lists_of_any_encoding_and_line_end(encoding: str, end: str, tmp_path: Path) -> None:
    files = {
        **pictures("JPEGImages/ä.jpg", "JPEGImages/b.JPG"),
        "Annotations/ä.xml": voc(DOG),
        "Annotations/b.XML": voc(DOG),
    }
    files["ImageSets/Main/train.txt"] = end.join(["ä", "B", "", "ä"]).encode(encoding)
    data = opened(write(tmp_path, files))
    assert read(data) == {"train": {"ä.jpg": [DOG_BOX], "b.JPG": [DOG_BOX]}}


@pytest.mark.parametrize(
    "line", ["a.jpg", "./a.jpg", "C:\\set\\images\\a.jpg", "/home/x/images/a.JPG", "images\\a.jpg"]
)
def test_yolo_lists_with_names_of_other_machines(line: str, tmp_path: Path) -> None:
    files = {"images/a.jpg": PICTURE, "labels/a.txt": "0 0.5 0.5 0.5 0.5", "images/train.txt": line}
    data = opened(write(tmp_path, {**files, "data.yaml": "train: images/train.txt\nnames: [dog]\n"}))
    assert read(data) == {"train": {"a.jpg": [("dog", 10, 5, 30, 15)]}}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_recipes_of_any_encoding(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes("data:\r  path: set\rtrain: {epochs: 3}\r".encode(encoding))
    recipe = load(str(path))
    assert (recipe.data.path, recipe.train.epochs) == ("set", 3)
