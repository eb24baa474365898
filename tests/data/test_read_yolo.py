from pathlib import Path

import pytest

from detdistill.data import open_data
from detdistill.errors import UserError
from detdistill.recipe import DataConfig, SplitPaths


def opened(root: Path, **fields):
    return open_data(DataConfig(path=str(root), **fields))


def test_normalised_centres_become_corners(yolo_set):
    data = opened(yolo_set())
    assert data.layout == "yolo"
    assert (data.classes, data.category_ids) == (("cat", "dog"), (0, 1))
    labelled, background = data.split("train").records
    assert labelled.boxes.tolist() == [[10, 5, 30, 15]]
    assert labelled.labels.tolist() == [1]
    assert background.boxes.shape == (0, 4)  # no label file
    assert data.split("val").records[0].boxes.tolist() == [[0, 0, 20, 20]]


def test_a_polygon_gives_its_bounding_box(yolo_set):
    data = opened(yolo_set("0 0.1 0.2 0.5 0.1 0.3 0.9\n"))
    assert data.split("train").records[0].corners[0].tolist() == pytest.approx([4, 2, 20, 18])


def test_names_by_number_keep_their_numbers(yolo_set):
    data = opened(yolo_set("5 0.5 0.5 0.5 0.5\n", "train: images/train\nval: [images/val]\nnames: {5: bus, 0: car}\n"))
    assert (data.classes, data.category_ids) == (("car", "bus"), (0, 5))
    assert data.split("train").records[0].labels.tolist() == [1]


def test_lists_of_images_and_folders_written_by_roboflow(yolo_set, picture):
    root = yolo_set(yaml="train: train.txt\nval: ../images/val\nnames: [cat, dog]\n")
    (root / "train.txt").write_text("./images/train/a.png\n\n")
    assert [record.name for record in opened(root).split("train").records] == ["a.png"]
    assert len(opened(root / "data.yaml").split("val")) == 1  # the file itself may be given


def test_a_moved_data_set_is_found_and_told(yolo_set):
    data = opened(yolo_set(yaml="path: /content/elsewhere\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n"))
    assert any("/content/elsewhere, which is not there" in note for note in data.notes)


def test_rounding_is_no_fault_but_a_box_that_reaches_out_is(yolo_set):
    rounded = opened(yolo_set("0 0.9876 0.5 0.025 1.0\n"))
    assert rounded.split("train").records[0].corners[0, 2] == 40
    assert len(rounded.notes) == 1
    assert "1 box reaching out" in opened(yolo_set("0 0.95 0.5 0.2 1.0\n")).notes[-1]


BAD = {
    "four numbers": ("0 0.5 0.5 0.5", r"a.txt: line 1 is '0 0.5 0.5 0.5'"),
    "text": ("cat 0.5 0.5 0.5 0.5", "line 1 is 'cat"),
    "NaN": ("0 nan 0.5 0.5 0.5", "line 1 is '0 nan"),
    "class": ("2 0.5 0.5 0.5 0.5", "line 1: class 2 is not in 'names'"),
    "half a class": ("0.5 0.5 0.5 0.5 0.5", "class 0.5 is not"),
    "pixels": (
        "0 320 240 50 50",
        r"a.txt: box of line 1 .* lies wholly outside the 40x20 image; correct the box or its unit",
    ),
    "negative": ("0 0.5 0.5 -0.1 0.1", "ends before it begins"),
}


@pytest.mark.parametrize(("line", "message"), BAD.values(), ids=BAD)
def test_a_bad_line_stops_or_is_skipped_by_name(yolo_set, line, message):
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
        ("names: [cat]\n", "no split"),
        ("train: images/train\n", "'names' is missing"),
        ("train: images/train\nnames: [cat, cat]\n", "one name twice"),
        ("train: images/train\nnames: [cat, dog]\nnc: 3\n", "nc is 3 but there are 2 names"),
        ("train: images/trian\nnames: [cat, dog]\n", "train: images/trian is neither a folder nor a list"),
        ("train: images/train\nnames: {a: cat}\n", "class numbers from 0"),
        ("- a\n", "not a YAML mapping"),
        ("a: [\n", "not YAML"),
    ],
)
def test_a_wrong_yaml(yolo_set, yaml, message):
    with pytest.raises(UserError, match=message) as caught:
        opened(yolo_set(yaml=yaml))
    assert "data.yaml" in str(caught.value)


def test_a_split_without_any_label_file_is_no_background(yolo_set):
    root = yolo_set()
    (root / "labels/val/c.txt").unlink()
    with pytest.raises(UserError, match="val: not one label file"):
        opened(root)


def test_explicit_folders_find_their_names(yolo_set):
    root = yolo_set()
    where = SplitPaths(annotations=root / "labels/train", images=root / "images/train")
    assert open_data(DataConfig(train=where)).classes == ("cat", "dog")
    (root / "data.yaml").unlink()
    with pytest.raises(UserError, match=r"labels/train: no class names"):
        open_data(DataConfig(train=where))
    (root / "labels/train/classes.txt").write_text("kitten\npuppy\n")
    assert open_data(DataConfig(train=where)).classes == ("kitten", "puppy")
