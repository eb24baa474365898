"""JSON files of LabelMe."""

import json
from pathlib import Path

import pytest

from detdistill.errors import UserError

from .builders import PICTURE, labelme, note, opened, pictures, read, shape, united, write

DOG, CAT = shape("dog", "rectangle", (30, 15), (10, 5)), shape("cat", "polygon", (0, 3), (20, 0), (8, 20))
DOG_BOX, CAT_BOX = ("dog", 10, 5, 30, 15), ("cat", 0, 0, 20, 20)

SHAPES = {
    "rectangle with its corners in any order": (DOG, [DOG_BOX]),
    "polygon": (CAT, [CAT_BOX]),
    "circle of a center and a point": (shape("dog", "circle", (20, 10), (23, 14)), [("dog", 15, 5, 25, 15)]),
    "line": (shape("dog", "linestrip", (1, 2), (8, 4), (5, 9)), [("dog", 1, 2, 8, 9)]),
    "rotated rectangle": (shape("dog", "rotation", (10, 5), (20, 0), (25, 10), (15, 15)), [("dog", 10, 0, 25, 15)]),
    "reaching out of the image": (shape("dog", "rectangle", (-5, 5), (10, 30)), [("dog", 0, 5, 10, 20)]),
    "point": (shape("dog", "point", (4, 4)), []),
}


@pytest.mark.parametrize(("item", "expected"), SHAPES.values(), ids=SHAPES)
def test_shapes(item: dict, expected: list, tmp_path: Path) -> None:
    data = opened(write(tmp_path, {"train/a.jpg": PICTURE, "train/a.json": labelme("a.jpg", item)}))
    assert data.layout == "labelme"
    assert read(data) == {"train": {"a.jpg": expected}}
    assert bool(expected) or note(data, "repaired") == "repaired: 1 box of zero size removed (a.jpg)"


PLACES = {
    "beside the images": {"train/a.jpg": PICTURE, "train/a.json": labelme("a.jpg", DOG)},
    "in a folder of their own": {"train/images/a.jpg": PICTURE, "train/json/a.json": labelme("a.jpg", DOG)},
    "image in another folder": {"train/images/a.jpg": PICTURE, "train/b.json": labelme("..\\x\\images\\a.jpg", DOG)},
    "relative path of Windows": {"train/images/a.jpg": PICTURE, "train/json/b.json": labelme("..\\images\\a.jpg", DOG)},
    "path of another machine": {"train/a.jpg": PICTURE, "train/b.json": labelme("/home/anna/a.jpg", DOG)},
    "renamed image": {"train/a.jpg": PICTURE, "train/a.json": labelme("IMG_1.jpg", DOG)},
    "upper-case endings": {"train/a.JPG": PICTURE, "train/a.JSON": labelme("a.jpg", DOG)},
    "no size": {"train/a.jpg": PICTURE, "train/a.json": labelme("a.jpg", DOG, height=-1, width=0)},
    "UTF-16": {"train/a.jpg": PICTURE, "train/a.json": json.dumps(labelme("a.jpg", DOG)).encode("utf-16")},
    "BOM": {"train/a.jpg": PICTURE, "train/a.json": json.dumps(labelme("a.jpg", DOG)).encode("utf-8-sig")},
    "the image inside the file": {
        "train/a.jpg": PICTURE,
        "train/a.json": {**labelme("a.jpg", DOG), "imageData": "A" * 200_000},
    },
}


@pytest.mark.parametrize("files", PLACES.values(), ids=PLACES)
def test_places_of_files_and_images(files: dict, tmp_path: Path) -> None:
    data = opened(write(tmp_path, files))
    assert list(read(data)["train"].values()) == [[DOG_BOX]]
    assert len(data.notes) == 1


def test_data_without_splits_and_images_without_a_file(tmp_path: Path) -> None:
    files = {**pictures("a.jpg", "b.jpg", "c.jpg"), "a.json": labelme("a.jpg", DOG), "b.json": labelme("b.jpg", CAT)}
    data = opened(write(tmp_path, files))
    assert (data.classes, data.category_ids) == (("cat", "dog"), (1, 2))
    assert united(read(data)) == {"a.jpg": [DOG_BOX], "b.jpg": [CAT_BOX]}
    assert note(data, "1 image") == "1 image without an annotation file, left out: c.jpg"
    assert note(data, "the data set has no splits: ")


def test_shapes_of_one_group_are_parts_of_one_object(tmp_path: Path) -> None:
    parts = [shape("dog", "polygon", (x, 2), (x + 4, 2), (x + 4, 9), group_id=1) for x in (0, 20)]
    other = shape("cat", "rectangle", (1, 1), (5, 5), group_id=1)
    data = opened(write(tmp_path, {"train/a.jpg": PICTURE, "train/a.json": labelme("a.jpg", *parts, other)}))
    assert read(data) == {"train": {"a.jpg": [("dog", 0, 2, 24, 9), ("cat", 1, 1, 5, 5)]}}


REFUSED = {
    "no label": ({**DOG, "label": ""}, r"a.json: shapes\[0\]: label is ''; write the name of its class"),
    "no points": (
        {**DOG, "points": []},
        r"a.json: shapes\[0\] \(dog\): points are \[\]; write pairs of finite numbers",
    ),
    "half a point": ({**DOG, "points": [[1]]}, r"shapes\[0\] \(dog\): points are \[\[1\]\]"),
    "text": ({**DOG, "points": [["1", 2], [3, 4]]}, r"shapes\[0\] \(dog\): points are \[\['1', 2\]"),
    "outside": (shape("dog", "rectangle", (90, 5), (95, 8)), r"shape \(90, 5, 95, 8\) is completely outside the 40x20"),
}


@pytest.mark.parametrize(("item", "message"), REFUSED.values(), ids=REFUSED)
def test_a_bad_shape_stops_the_run_or_is_skipped(item: dict, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, {"train/a.jpg": PICTURE, "train/a.json": labelme("a.jpg", item, CAT)})
    with pytest.raises(UserError, match=message):
        opened(path)
    data = opened(path, on_bad_record="skip")
    assert read(data) == {"train": {"a.jpg": [CAT_BOX]}}
    assert note(data, "skipped: 1 record (a.json)")


def test_damaged_files_and_labels_without_objects(tmp_path: Path) -> None:
    path = write(tmp_path, {"train/a.jpg": PICTURE, "train/a.json": json.dumps(labelme("a.jpg", DOG))[:-9]})
    with pytest.raises(UserError, match=r"a.json: the file is not JSON .*; save the annotations again"):
        opened(path)
    write(tmp_path, {"train/a.json": labelme("a.jpg")})
    with pytest.raises(UserError, match=r"train: no JSON file has a shape with a label; label the images first"):
        opened(path)


def test_two_files_of_one_image_are_refused(tmp_path: Path) -> None:
    files = {"train/a.jpg": PICTURE, "train/a.json": labelme("a.jpg", DOG), "train/b.json": labelme("a.jpg", CAT)}
    with pytest.raises(UserError, match=r"a.jpg: both .*a.json and .*b.json belong to it"):
        opened(write(tmp_path, files))
