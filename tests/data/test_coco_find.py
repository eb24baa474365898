"""Which files are COCO files, and which split a name means."""

import json

import pytest

from detdistill.data import coco_find
from detdistill.data.coco_find import find, is_coco, split_name
from detdistill.errors import UserError

LISTS = {"images": [], "annotations": [], "categories": []}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Train2017", "train"),
        ("lvis_v1_val", "val"),
        ("valid", "valid"),
        ("my-validation.v2", "val"),
        ("testing", "test"),
        ("trainval", "trainval"),
        ("train_val", None),
        ("test-train", None),
        ("latest", None),
        ("retrained", None),
        ("export", None),
    ],
)
def test_the_split_that_a_name_means(name, split):
    assert split_name(name) == split


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (json.dumps(LISTS), True),
        (json.dumps(LISTS, indent=4), True),
        ("\n " + json.dumps({"info": {}, **LISTS}), True),
        (json.dumps([LISTS]), False),
        (json.dumps({**LISTS, "categories": None}), False),
        (json.dumps({"images": [], "annotations": []}), False),
        (json.dumps({**LISTS, "annotations": [{"segments_info": []}]}), False),
        (json.dumps({"shapes": [], "imageData": "images annotations categories"}), False),
        ("", False),
        ("{", False),
    ],
)
def test_a_coco_file_is_recognized_without_parsing(tmp_path, content, expected):
    path = tmp_path / "x.json"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le"):
        path.write_text(content, encoding=encoding)
        assert is_coco(path) is expected
    assert not is_coco(tmp_path / "absent.json")


def test_a_folder_with_a_json_file_per_image_is_not_searched_file_by_file(tmp_path, monkeypatch):
    for name in ("1", "2", "3", "labels"):
        (tmp_path / f"{name}.json").write_text(json.dumps(LISTS))
    assert set(find(tmp_path)) == {"1", "2", "3", "labels"}
    monkeypatch.setattr(coco_find, "MANY", 3)
    assert set(find(tmp_path)) == {"all"}


def test_two_files_of_one_split_are_refused(tmp_path):
    for name in ("a_train", "b_train"):
        (tmp_path / f"{name}.json").write_text(json.dumps(LISTS))
    with pytest.raises(UserError, match=r"b_train.json: a_train.json also belongs to split 'train'; remove one"):
        find(tmp_path)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/train.json").write_text("damaged, but surely the annotations of train")
    (source,) = find(tmp_path).values()
    assert source.annotations == tmp_path / "annotations/train.json"
    assert source.notes == ("not read: a_train.json, b_train.json, because train.json has the split 'train'",)


def test_other_files_and_folders_are_no_coco_set(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "package.json").write_text("{}")
    (tmp_path / "data.yaml").write_text("names: [a]")
    assert find(tmp_path) == {}
    assert find(tmp_path / "data.yaml") == {}
    assert find(tmp_path / "absent") == {}


def test_files_without_a_split_beside_files_with_one_are_not_read(tmp_path):
    for name in ("my_train", "validation", "extra"):
        (tmp_path / f"{name}.json").write_text(json.dumps(LISTS))
    sources = find(tmp_path)
    assert list(sources) == ["train", "val"]
    assert sources["train"].notes == ("not read: extra.json, whose name says neither train, val nor test",)


def test_a_file_of_any_name_yields_to_a_layout_with_splits(tmp_path):
    (tmp_path / "export.json").write_text(json.dumps(LISTS))
    assert set(find(tmp_path)) == {"all"}
    (tmp_path / "data.yaml").write_text("names: [a]")
    assert find(tmp_path) == {}
    assert set(find(tmp_path / "export.json")) == {"all"}
    for split in ("test", "train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(LISTS))
    assert list(find(tmp_path)) == ["train", "val", "test"]
