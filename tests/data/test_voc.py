"""Pascal VOC: what is read, and the messages for faults."""

from pathlib import Path

import pytest

from detdistill.data import open_data
from detdistill.errors import UserError
from detdistill.recipe import DataConfig, SplitPaths
from tests.data.voc_text import voc_object


def opened(root: Path, **fields):
    """The data set in the folder."""
    return open_data(DataConfig(path=str(root), **fields))


def test_corners_begin_at_one_and_are_inside_the_box(voc_set):
    data = opened(voc_set())
    assert data.layout == "voc"
    assert (data.classes, data.category_ids) == (("cat", "dog"), (1, 2))
    assert list(data.splits) == ["train", "trainval", "val"]  # dog_train is a list of one class
    (dog,), (cat,) = data.split("train").records, data.split("val").records
    assert dog.boxes.tolist() == [[0, 0, 40, 20]]  # 1..40 and 1..20 are the whole image
    assert cat.boxes.tolist() == [[10, 5, 20, 10]]  # 11..20 are ten pixels
    assert (dog.labels.tolist(), cat.labels.tolist()) == ([1], [0])  # all splits have the same class order
    assert data.split("trainval").records == (dog, cat)
    assert dog.id != cat.id


def test_a_difficult_object_is_a_crowd(voc_set):
    body = voc_object("dog", (1, 1, 9, 9)) + voc_object("dog", (11, 1, 19, 9), difficult=1)
    record = opened(voc_set(a=body)).split("train").records[0]
    assert record.crowd.tolist() == [False, True]


def test_a_box_of_zero_size_is_removed_and_counted_once_for_all_splits(voc_set):
    data = opened(voc_set(a=voc_object("dog", (5, 7, 5, 7)) + voc_object("dog", (0, 1, 9, 9))))
    assert data.split("trainval").records[0].boxes.tolist() == [[0, 0, 9, 9]]  # xmin 0 would become -1
    expected = "repaired: 1 box clipped to the image (a.png); 1 box of zero size removed (a.png)"
    assert data.notes[-1] == expected


def test_parts_of_a_person_are_not_objects(voc_set):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>"
    data = opened(voc_set(a=voc_object("person", (1, 1, 9, 9)).replace("</object>", part + "</object>")))
    assert data.classes == ("cat", "person")
    assert data.split("train").records[0].boxes.tolist() == [[0, 0, 9, 9]]


BAD_OBJECTS = {
    "no XML": ("</annotation>", r"a.xml: the file is not XML"),
    "no name": ("<object><bndbox/></object>", r"a.xml: object 1: name is missing; write the name of its class"),
    "no box": ("<object><name>dog</name></object>", r"a.xml: object 1 \(dog\): xmin of bndbox is missing"),
    "text": (
        voc_object("dog", (1, 1, "wide", 9)),
        r"a.xml: object 1 \(dog\): xmax of bndbox is missing or not a number; write xmin, ymin, xmax and ymax",
    ),
    "NaN": (voc_object("dog", (1, "nan", 9, 9)), "ymin of bndbox is missing or not a number"),
    "wrong flag": (voc_object("dog", (1, 1, 9, 9), difficult="maybe"), "difficult is 'maybe'; write 0 or 1"),
    "backwards": (
        voc_object("dog", (9, 1, 5, 9)),
        r"a.xml: object 1 \(dog\): bndbox ends before it begins \(9, 1, 5, 9\); correct its corners",
    ),
    "outside": (voc_object("dog", (100, 1, 120, 9)), r"bndbox \(99, 0, 120, 9\) is completely outside the 40x20 image"),
}


@pytest.mark.parametrize(("body", "message"), BAD_OBJECTS.values(), ids=BAD_OBJECTS)
def test_a_bad_record_stops_the_run_or_is_skipped_and_named(voc_set, body, message):
    root = voc_set(a=body)
    with pytest.raises(UserError, match=message) as caught:
        opened(root)
    assert "\n" not in str(caught.value)
    (root / "ImageSets/Main/train.txt").write_text("a\nb\n")
    data = opened(root, on_bad_record="skip")
    assert data.notes[-1].startswith("skipped: 1 record (a.")
    assert data.classes[0] == "cat"


def test_a_listed_image_without_annotations_or_without_a_file_is_refused(voc_set):
    root = voc_set()
    (root / "ImageSets/Main/train.txt").write_text("a\nz\n")
    with pytest.raises(UserError, match=r"z.xml: can't read the annotations"):
        opened(root)
    (root / "JPEGImages/a.png").unlink()
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"JPEGImages/a.jpg: the image file does not exist"):
        opened(root)


def test_explicit_folders(voc_set):
    root = voc_set()
    data = open_data(DataConfig(test=SplitPaths(annotations=root / "Annotations", images=root / "JPEGImages")))
    assert (data.layout, len(data.split("test"))) == ("voc", 2)
