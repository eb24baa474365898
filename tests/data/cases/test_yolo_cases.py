"""YOLO files as tools write them: layouts."""

from pathlib import Path

import pytest

from detdistill.errors import UserError
from detdistill.recipe import DataConfig

from .builders import PICTURE, note, opened, pictures, read, united, write

DOG, CAT = "1 0.5 0.5 0.5 0.5\n", "0 0.25 0.5 0.5 1\n"
DOG_BOX, CAT_BOX = ("dog", 10, 5, 30, 15), ("cat", 0, 0, 20, 20)
NAMES = "cat\ndog\n"

WITH_SPLITS = {
    "images/train and labels/train": {
        **pictures("images/train/a.jpg", "images/test/b.jpg"),
        "labels/train/a.txt": DOG,
        "labels/test/b.txt": CAT,
        "classes.txt": NAMES,
    },
    "train/images and train/labels": {
        **pictures("train/images/a.jpg", "test/images/b.JPG"),
        "train/labels/a.txt": DOG,
        "test/labels/b.txt": CAT,
        "obj.names": NAMES,
    },
    "images and labels together": {
        **pictures("train/a.jpg", "test/b.jpg"),
        "train/a.txt": DOG,
        "train/classes.txt": NAMES,
        "test/b.TXT": CAT,
        "test/classes.txt": NAMES,
    },
    "lists beside one folder": {
        **pictures("images/a.jpg", "images/b.jpg"),
        "labels/a.txt": DOG,
        "labels/b.txt": CAT,
        "voc.names": NAMES,
        "cards_train.txt": "images/a.jpg\n",
        "cards_test.txt": "C:\\old\\images\\b.jpg\n",
    },
    "Darknet": {
        **pictures("data/obj/a.jpg", "data/obj/b.jpg"),
        "data/obj/a.txt": DOG,
        "data/obj/b.txt": CAT,
        "data/obj.data": "classes=2\ntrain=data/train.txt\nvalid = data/test.txt\nnames=data/obj.names\n",
        "data/obj.names": NAMES,
        "data/train.txt": "data/obj/a.jpg\n",
        "data/test.txt": "data/obj/b.jpg\n",
    },
    "CVAT YOLO 1.1": {
        **pictures("obj_train_data/a.jpg", "obj_Test_data/b.jpg"),
        "obj_train_data/a.txt": DOG,
        "obj_Test_data/b.txt": CAT,
        "obj.data": "classes = 2\nnames = data/obj.names\ntrain = data/train.txt\ntest = data/Test.txt\n",
        "obj.names": NAMES,
        "train.txt": "data/obj_train_data/a.jpg",
        "Test.txt": "data/obj_Test_data/b.jpg",
    },
    "CVAT YOLO 1.1 without obj.data": {
        **pictures("obj_train_data/a.jpg", "obj_test_data/b.jpg"),
        "obj_train_data/a.txt": DOG,
        "obj_test_data/b.txt": CAT,
        "obj.names": NAMES,
    },
    "data.yaml with the paths of another machine": {
        **pictures("images/train/a.jpg", "images/test/b.jpg"),
        "labels/train/a.txt": DOG,
        "labels/test/b.txt": CAT,
        "data.yaml": "train: /content/set/images/train\ntest: D:\\set\\images\\test\nnames: {'0': cat, '1': dog}\n",
    },
}


@pytest.mark.parametrize("files", WITH_SPLITS.values(), ids=WITH_SPLITS)
def test_split_folders_and_lists(files: dict, tmp_path: Path) -> None:
    data = opened(write(tmp_path, files))
    assert (data.layout, data.classes) == ("yolo", ("cat", "dog"))
    training, evaluation = data.training_split(DataConfig()).name, data.evaluation_split(DataConfig()).name
    found = read(data)
    assert list(found[training].values()) == [[DOG_BOX]]
    assert list(found[evaluation].values()) == [[CAT_BOX]]
    assert len(found) == 2


def test_the_end_of_a_path_of_another_machine_is_told(tmp_path: Path) -> None:
    data = opened(write(tmp_path, WITH_SPLITS["data.yaml with the paths of another machine"]))
    expected = "data.yaml: train is /content/set/images/train, which does not exist; images/train is read"
    assert note(data, "data.yaml: train") == expected


WITHOUT_SPLITS = {
    "images and labels": {
        **pictures("images/a.jpg", "images/b.jpg"),
        "labels/a.txt": DOG,
        "labels/b.txt": CAT,
        "labels/classes.txt": NAMES,
    },
    "one folder": {**pictures("a.jpg", "b.jpg"), "a.txt": DOG, "b.txt": CAT, "classes.txt": NAMES},
    "names with a BOM and CR": {
        **pictures("a.jpg", "b.jpg"),
        "a.txt": DOG,
        "b.txt": CAT,
        "classes.txt": b"\xef\xbb\xbfcat\rdog\r",
    },
}


@pytest.mark.parametrize("files", WITHOUT_SPLITS.values(), ids=WITHOUT_SPLITS)
def test_data_without_splits(files: dict, tmp_path: Path) -> None:
    data = opened(write(tmp_path, files))
    assert (data.layout, data.classes) == ("yolo", ("cat", "dog"))
    assert united(read(data)) == {"a.jpg": [DOG_BOX], "b.jpg": [CAT_BOX]}
    assert note(data, "the data set has no splits: ")


@pytest.mark.parametrize("name", ["data.yaml", "obj.data"])
def test_a_file_alone(name: str, tmp_path: Path) -> None:
    kinds = {
        "data.yaml": "train: images\nnames: [cat, dog]\n",
        "obj.data": "train = train.txt\nnames = obj.names\n",
    }
    files = {"images/a.jpg": PICTURE, "labels/a.txt": DOG, "obj.names": NAMES, "train.txt": "images/a.jpg"}
    data = opened(write(tmp_path, {**files, name: kinds[name]}) / name)
    assert read(data) == {"train": {"a.jpg": [DOG_BOX]}}


def test_a_split_that_is_not_there_is_told_and_refused_only_if_it_is_needed(tmp_path: Path) -> None:
    files = {**pictures("images/train/a.jpg", "images/val/b.jpg"), "labels/train/a.txt": DOG, "labels/val/b.txt": CAT}
    files["data.yaml"] = "train: images/train\nval: images/val\ntest: images/test\nnames: [cat, dog]\n"
    data = opened(write(tmp_path, files))
    problem = f"images/test is neither a folder nor a list of images (looked for {tmp_path}/images/test)"
    assert note(data, "data.yaml") == f"data.yaml: test: {problem}; the split is left out"
    assert data.evaluation_split(DataConfig()).name == "val"
    with pytest.raises(UserError, match=r"data.yaml: test: images/test is neither a folder nor"):
        data.evaluation_split(DataConfig(eval_split="test"))
    write(tmp_path, {"data.yaml": "train: images/tarin\nval: images/val\nnames: [cat, dog]\n"})
    with pytest.raises(UserError, match=r"data.yaml: train: images/tarin is neither a folder nor"):
        opened(tmp_path).training_split(DataConfig())


def test_a_validation_list_that_is_the_training_list_is_no_split(tmp_path: Path) -> None:
    files = {"a.jpg": PICTURE, "a.txt": DOG, "obj.names": NAMES, "train.txt": "a.jpg"}
    files["obj.data"] = "train = train.txt\nvalid = train.txt\nnames = obj.names\n"
    data = opened(write(tmp_path, files))
    assert list(data.splits) == ["train"]
    assert note(data, "obj.data") == "obj.data: valid is the same list as train, so there is no split 'valid'"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train = train.txt\n", "obj.data: names: None does not exist"),
        ("train = train.txt\nnames = obj.names\nclasses = 3\n", "classes is 3, but obj.names has 2 names; correct one"),
        ("names = obj.names\n", "train and valid are missing; give the lists of images"),
        ("train = other.txt\nnames = obj.names\n", "train: other.txt is neither a folder nor a list of images"),
    ],
)
def test_a_wrong_obj_data_is_refused(content: str, message: str, tmp_path: Path) -> None:
    files = {"a.jpg": PICTURE, "a.txt": DOG, "obj.names": NAMES, "train.txt": "a.jpg", "obj.data": content}
    with pytest.raises(UserError, match=message):
        opened(write(tmp_path, files) / "obj.data")


def test_an_export_without_images_is_refused(tmp_path: Path) -> None:
    files = {"obj_train_data/a.txt": DOG, "obj.names": NAMES, "train.txt": "data/obj_train_data/a.jpg\n"}
    files["obj.data"] = "train = data/train.txt\nnames = data/obj.names\n"
    with pytest.raises(UserError, match=r"train: none of its 1 images exists .*exporting the data set with images"):
        opened(write(tmp_path, files))


def test_background_and_labels_without_an_image_are_told(tmp_path: Path) -> None:
    files = {**pictures("images/train/a.jpg", "images/train/b.jpg"), "labels/train/a.txt": DOG, "classes.txt": NAMES}
    data = opened(write(tmp_path, {**files, "labels/train/z.txt": CAT}))
    assert read(data) == {"train": {"a.jpg": [DOG_BOX], "b.jpg": []}}
    assert note(data, "1 image") == "1 image without a label file, read as background: b.jpg"
    assert note(data, "1 label") == "1 label file without an image, left out: z.txt"
    assert note(data, "1 class") == "1 class without objects: cat"


def test_an_image_in_two_lists_is_read_in_both_and_one_in_none_is_told(tmp_path: Path) -> None:
    files = {**pictures("a.jpg", "b.jpg", "c.jpg"), "a.txt": DOG, "b.txt": CAT, "c.txt": CAT, "classes.txt": NAMES}
    data = opened(write(tmp_path, {**files, "train.txt": "a.jpg", "trainval.txt": "a.jpg\nb.jpg"}))
    assert read(data) == {"train": {"a.jpg": [DOG_BOX]}, "trainval": {"a.jpg": [DOG_BOX], "b.jpg": [CAT_BOX]}}
    assert note(data, "1 image") == "1 image in no list, left out: c.jpg"


def test_names_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    files = {**pictures("train/a.jpg", "test/b.jpg"), "train/a.txt": DOG, "test/b.txt": CAT}
    files |= {"train/classes.txt": NAMES, "test/classes.txt": "dog\ncat\n"}
    with pytest.raises(UserError, match=r"its class names differ from those of .*test/classes.txt; correct or remove"):
        opened(write(tmp_path, files))


def test_two_images_with_one_label_file_are_refused(tmp_path: Path) -> None:
    files = {**pictures("images/train/a.jpg", "images/test/a.jpg"), "labels/a.txt": DOG, "classes.txt": NAMES}
    with pytest.raises(UserError, match=r"labels/a.txt: both .*test/a.jpg and .*train/a.jpg belong to it"):
        opened(write(tmp_path, files))


def test_a_broken_yaml_does_not_hide_another_layout(tmp_path: Path) -> None:
    files = {"train/a.jpg": PICTURE, "train/a.xml": "<annotation><object/></annotation>", "data.yaml": "a: ["}
    with pytest.raises(UserError, match=r"a.xml: object 1: name is missing"):
        opened(write(tmp_path, files))
    (tmp_path / "train/a.xml").unlink()
    with pytest.raises(UserError, match=r"data.yaml: invalid YAML: line 1"):
        opened(tmp_path)
