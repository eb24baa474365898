from pathlib import Path

import pytest
from voc_text import voc_object

from detdistill.data import open_data
from detdistill.errors import UserError
from detdistill.recipe import DataConfig, SplitPaths


def opened(root: Path, **fields):
    return open_data(DataConfig(path=str(root), **fields))


def test_corners_count_from_one_and_lie_inside(voc_set):
    data = opened(voc_set())
    assert data.layout == "voc"
    assert (data.classes, data.category_ids) == (("cat", "dog"), (1, 2))
    assert list(data.splits) == ["train", "trainval", "val"]  # not dog_train, a list by class
    (dog,), (cat,) = data.split("train").records, data.split("val").records
    assert dog.boxes.tolist() == [[0, 0, 40, 20]]  # 1..40 and 1..20 are the whole image
    assert cat.boxes.tolist() == [[10, 5, 20, 10]]  # 11..20 are ten pixels
    assert (dog.labels.tolist(), cat.labels.tolist()) == ([1], [0])  # one order for all splits
    assert data.split("trainval").records == (dog, cat)
    assert dog.id != cat.id


def test_a_difficult_object_is_a_crowd(voc_set):
    record = (
        opened(voc_set(a=voc_object("dog", (1, 1, 9, 9)) + voc_object("dog", (11, 1, 19, 9), difficult=1)))
        .split("train")
        .records[0]
    )
    assert record.crowd.tolist() == [False, True]


def test_zero_size_as_written_is_dropped_once_for_all_splits(voc_set):
    data = opened(voc_set(a=voc_object("dog", (5, 7, 5, 7)) + voc_object("dog", (0, 1, 9, 9))))
    assert data.split("trainval").records[0].boxes.tolist() == [[0, 0, 9, 9]]  # xmin 0 would be -1
    assert (
        data.notes[-1]
        == "mended: 1 box reaching out of the image clipped to it (a.png); 1 box of zero size dropped (a.png)"
    )


def test_parts_of_a_person_are_no_objects(voc_set):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>"
    data = opened(voc_set(a=voc_object("person", (1, 1, 9, 9)).replace("</object>", part + "</object>")))
    assert data.classes == ("cat", "person")
    assert data.split("train").records[0].boxes.tolist() == [[0, 0, 9, 9]]


BAD = {
    "no XML": ("</annotation>", r"a.xml: not XML"),
    "no name": ("<object><bndbox/></object>", r"a.xml: object 1 has no name"),
    "no box": ("<object><name>dog</name></object>", r"a.xml: object 1 \(dog\): xmin of bndbox is missing"),
    "text": (voc_object("dog", (1, 1, "wide", 9)), r"a.xml: object 1 \(dog\): xmax of bndbox is missing or no number"),
    "NaN": (voc_object("dog", (1, "nan", 9, 9)), "ymin of bndbox is missing or no number"),
    "odd flag": (voc_object("dog", (1, 1, 9, 9), difficult="maybe"), "difficult is 'maybe'"),
    "backwards": (voc_object("dog", (9, 1, 5, 9)), r"a.png: bndbox of object 1 \(dog\) ends before it begins"),
    "outside": (voc_object("dog", (100, 1, 120, 9)), "lies wholly outside"),
}


@pytest.mark.parametrize(("body", "message"), BAD.values(), ids=BAD)
def test_a_bad_record_stops_or_is_skipped_by_name(voc_set, body, message):
    root = voc_set(a=body)
    with pytest.raises(UserError, match=message) as caught:
        opened(root)
    assert "\n" not in str(caught.value)
    (root / "ImageSets/Main/train.txt").write_text("a\nb\n")
    data = opened(root, on_bad_record="skip")
    assert data.notes[-1].startswith("skipped: 1 record (a.")
    assert data.classes[0] == "cat"


def test_a_listed_image_without_annotations_or_file(voc_set):
    root = voc_set()
    (root / "ImageSets/Main/train.txt").write_text("a\nz\n")
    with pytest.raises(UserError, match=r"z.xml: can't read the annotations"):
        opened(root)
    (root / "JPEGImages/a.png").unlink()
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"JPEGImages/a.jpg: there is no such image"):
        opened(root)


def test_explicit_folders(voc_set):
    root = voc_set()
    data = open_data(DataConfig(test=SplitPaths(annotations=root / "Annotations", images=root / "JPEGImages")))
    assert (data.layout, len(data.split("test"))) == ("voc", 2)
