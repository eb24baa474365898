"""YOLO: what is read, and the messages for faults."""

from pathlib import Path

import pytest

from detdistill.data import open_data
from detdistill.errors import UserError
from detdistill.recipe import DataConfig, SplitPaths


def opened(root: Path, **fields):
    """The data set in the folder."""
    return open_data(DataConfig(path=str(root), **fields))


def test_normalized_centers_become_corners(yolo_set):
    data = opened(yolo_set())
    assert data.layout == "yolo"
    assert (data.classes, data.category_ids) == (("cat", "dog"), (0, 1))
    labeled, background = data.split("train").records
    assert labeled.boxes.tolist() == [[10, 5, 30, 15]]
    assert labeled.labels.tolist() == [1]
    assert background.boxes.shape == (0, 4)  # it has no label file
    assert data.split("val").records[0].boxes.tolist() == [[0, 0, 20, 20]]


def test_a_polygon_gives_its_bounding_box(yolo_set):
    data = opened(yolo_set("0 0.1 0.2 0.5 0.1 0.3 0.9\n"))
    assert data.split("train").records[0].corners[0].tolist() == pytest.approx([4, 2, 20, 18])


def test_names_with_numbers_keep_their_numbers(yolo_set):
    data = opened(yolo_set("5 0.5 0.5 0.5 0.5\n", "train: images/train\nval: [images/val]\nnames: {5: bus, 0: car}\n"))
    assert (data.classes, data.category_ids) == (("car", "bus"), (0, 5))
    assert data.split("train").records[0].labels.tolist() == [1]


def test_lists_of_images_and_the_folders_of_roboflow(yolo_set):
    root = yolo_set(yaml="train: train.txt\nval: ../images/val\nnames: [cat, dog]\n")
    (root / "train.txt").write_text("./images/train/a.png\n\n")
    assert [record.name for record in opened(root).split("train").records] == ["a.png"]
    assert len(opened(root / "data.yaml").split("val")) == 1  # the path of the file is possible too


def test_a_data_set_that_was_moved_is_found_and_noted(yolo_set):
    data = opened(yolo_set(yaml="path: /content/elsewhere\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n"))
    assert any("path is /content/elsewhere, which does not exist" in note for note in data.notes)


def test_a_box_outside_by_more_than_rounding_is_repaired(yolo_set):
    rounded = opened(yolo_set("0 0.9876 0.5 0.025 1.0\n"))
    assert rounded.split("train").records[0].corners[0, 2] == 40
    assert not any(note.startswith("repaired") for note in rounded.notes)
    assert "1 box clipped to the image (a.png)" in opened(yolo_set("0 0.95 0.5 0.2 1.0\n")).notes[-1]


BAD_LINES = {
    "four numbers": (
        "0 0.5 0.5 0.5",
        r"a.txt: line 1: '0 0.5 0.5 0.5' is neither a box nor a polygon; write class cx cy w h, all finite numbers",
    ),
    "text": ("cat 0.5 0.5 0.5 0.5", "line 1: 'cat"),
    "NaN": ("0 nan 0.5 0.5 0.5", "line 1: '0 nan"),
    "class": (
        "2 0.5 0.5 0.5 0.5",
        "a.txt: line 1: class 2 is not in 'names'; correct the class or add its name",
    ),
    "half a class": ("0.5 0.5 0.5 0.5 0.5", "class 0.5 is not in 'names'"),
    "pixels": (
        "0 320 240 50 50",
        r"a.txt: line 1: '0 320 240 50 50' has numbers far outside of 0 to 1, which look like pixels",
    ),
    "outside": (
        "0 1.5 0.5 0.5 0.5",
        r"a.txt: line 1: box .* is completely outside the 40x20 image; correct the box or its unit",
    ),
    "negative": ("0 0.5 0.5 -0.1 0.1", "a.txt: line 1: box .* ends before it begins"),
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_stops_the_run_or_is_skipped_and_named(yolo_set, line, message):
    root = yolo_set(f"{line}\n1 0.5 0.5 0.5 0.5\n")
    with pytest.raises(UserError, match=message) as caught:
        opened(root)
    assert "\n" not in str(caught.value)
    data = opened(root, on_bad_record="skip")
    assert data.split("train").records[0].labels.tolist() == [1]
    assert data.notes[-1].startswith("skipped: 1 record (a.txt)")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [cat]\n", "train, val and test are missing"),
        ("train: images/train\n", "'names' is missing"),
        ("train: images/train\nnames: [cat, cat]\n", "'names' has the same name twice"),
        ("train: images/train\nnames: [cat, dog]\nnc: 3\n", "nc is 3, but 'names' has 2 names"),
        ("train: images/trian\nnames: [cat, dog]\n", "train: images/trian is neither a folder nor a list"),
        ("train: images/train\nnames: {a: cat}\n", "'names' has the keys a; use class numbers from 0"),
        ("- a\n", "the file is not a YAML mapping"),
        ("a: [\n", "invalid YAML: line 2: "),
    ],
)
def test_a_wrong_yaml_is_refused(yolo_set, yaml, message):
    with pytest.raises(UserError, match=message) as caught:
        opened(yolo_set(yaml=yaml))
    assert "data.yaml" in str(caught.value)


def test_a_split_without_any_label_file_is_refused_if_it_is_needed(yolo_set):
    root = yolo_set()
    (root / "labels/val/c.txt").unlink()
    data = opened(root)
    assert any("val: none of its 1 images has a label file" in note for note in data.notes)
    with pytest.raises(UserError, match=r"val: none of its 1 images has a label file .*; put labels/ beside images/"):
        data.evaluation_split(DataConfig())


def test_explicit_folders_find_their_class_names(yolo_set):
    root = yolo_set()
    paths = SplitPaths(annotations=root / "labels/train", images=root / "images/train")
    assert open_data(DataConfig(train=paths)).classes == ("cat", "dog")
    (root / "data.yaml").unlink()
    with pytest.raises(UserError, match=r"labels/train: the class names are missing"):
        open_data(DataConfig(train=paths))
    (root / "labels/train/classes.txt").write_text("kitten\npuppy\n")
    assert open_data(DataConfig(train=paths)).classes == ("kitten", "puppy")
