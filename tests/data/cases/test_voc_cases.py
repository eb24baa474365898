"""Pascal VOC files as labeling tools write them."""

from pathlib import Path

import pytest
from PIL import ExifTags, Image

from detdistill.errors import UserError
from detdistill.recipe import DataConfig

from .builders import HEIGHT, PICTURE, SIZE, WIDTH, note, opened, pictures, read, united, voc, voc_object, write

DOG, CAT = ("dog", 1, 1, 10, 10), ("cat", 11, 6, 20, 10)
DOG_BOX, CAT_BOX = ("dog", 0, 0, 10, 10), ("cat", 10, 5, 20, 10)

WITH_SPLITS = {
    "in images/train and images/test": {
        **pictures("images/train/a.jpg", "images/test/b.JPG"),
        "images/train/a.xml": voc(DOG),
        "images/test/b.xml": voc(CAT),
    },
    "in train and test": {
        **pictures("train/a.jpg", "test/b.png"),
        "train/a.XML": voc(DOG),
        "test/b.xml": voc(CAT),
    },
    "in folders of each split": {
        **pictures("train/images/a.jpg", "test/images/b.jpg"),
        "train/Annotations/a.xml": voc(DOG),
        "test/Annotations/b.xml": voc(CAT),
    },
    "annotations in one folder, images in split folders": {
        **pictures("images/train/a.jpg", "images/test/b.jpg"),
        "Annotations/a.xml": voc(DOG),
        "Annotations/b.xml": voc(CAT),
    },
    "annotations in split folders, images in one folder": {
        **pictures("imgs/a.jpg", "imgs/b.jpg"),
        "xmls/train/a.xml": voc(DOG),
        "xmls/test/b.xml": voc(CAT),
    },
    "with lists": {
        **pictures("JPEGImages/a.jpg", "JPEGImages/b.jpg"),
        "Annotations/a.xml": voc(DOG),
        "Annotations/b.xml": voc(CAT),
        "ImageSets/Main/train.txt": "a\n",
        "ImageSets/Main/test.txt": "b\n",
    },
    "with lists of file names and other folder names": {
        **pictures("images/a.jpg", "images/b.jpg"),
        "annotations/a.xml": voc(DOG),
        "annotations/b.xml": voc(CAT),
        "ImageSets/train.txt": "a.jpg\n",
        "ImageSets/test.txt": "JPEGImages\\b.jpg\n",
    },
    "with lists beside the folders": {
        **pictures("images/a.jpg", "images/b.jpg"),
        "annotations/a.xml": voc(DOG),
        "annotations/b.xml": voc(CAT),
        "train.txt": "a\n",
        "test.txt": "images/b.jpg\n",
    },
    "with lists, and XML beside the images": {
        **pictures("JPEGImages/a.jpg", "JPEGImages/b.jpg"),
        "JPEGImages/a.xml": voc(DOG),
        "JPEGImages/b.xml": voc(CAT),
        "ImageSets/Main/train.txt": "a\n",
        "ImageSets/Main/test.txt": "b\n",
    },
    "inside another folder": {
        **pictures("VOCdevkit/VOC2007/JPEGImages/a.jpg", "VOCdevkit/VOC2007/JPEGImages/b.jpg"),
        "VOCdevkit/VOC2007/Annotations/a.xml": voc(DOG),
        "VOCdevkit/VOC2007/Annotations/b.xml": voc(CAT),
        "VOCdevkit/VOC2007/ImageSets/Main/train.txt": "a",
        "VOCdevkit/VOC2007/ImageSets/Main/test.txt": "b",
    },
}


@pytest.mark.parametrize("files", WITH_SPLITS.values(), ids=WITH_SPLITS)
def test_split_folders_and_lists(files: dict, tmp_path: Path) -> None:
    data = opened(write(tmp_path, files))
    assert data.layout == "voc"
    train, test = read(data)["train"], read(data)["test"]
    assert list(train.values()) == [[DOG_BOX]]
    assert list(test.values()) == [[CAT_BOX]]
    assert data.divided is None


WITHOUT_SPLITS = {
    "in one folder": {"a.jpg": PICTURE, "a.xml": voc(DOG), "b.jpg": PICTURE, "b.xml": voc(CAT)},
    "in Annotations and images": {
        **pictures("images/a.jpg", "images/b.jpg"),
        "Annotations/a.xml": voc(DOG),
        "Annotations/b.xml": voc(CAT),
    },
    "in Annotations and JPEGImages": {
        **pictures("JPEGImages/a.jpg", "JPEGImages/b.jpg"),
        "Annotations/a.xml": voc(DOG),
        "Annotations/b.xml": voc(CAT),
    },
    "list `default` of CVAT": {
        **pictures("JPEGImages/a.jpg", "JPEGImages/b.jpg"),
        "Annotations/a.xml": voc(DOG),
        "Annotations/b.xml": voc(CAT),
        "ImageSets/Main/default.txt": "a\nb\n",
    },
    "image known only to the file": {
        **pictures("photos/IMG_1.jpg", "photos/b.jpg"),
        "Annotations/0001.xml": voc(DOG, more="<filename>C:\\photos\\IMG_1.JPG</filename>"),
        "Annotations/b.xml": voc(CAT),
    },
}


@pytest.mark.parametrize("files", WITHOUT_SPLITS.values(), ids=WITHOUT_SPLITS)
def test_data_without_splits(files: dict, tmp_path: Path) -> None:
    data = opened(write(tmp_path, files))
    assert data.layout == "voc"
    assert sorted(united(read(data)).values()) == [[CAT_BOX], [DOG_BOX]]
    assert note(data, "the data set has no splits: ")


@pytest.mark.parametrize(
    "folder", ["train", "training", "val", "valid", "validation", "dev", "test", "testing", "Valid"]
)
def test_names_of_split_folders(folder: str, tmp_path: Path) -> None:
    files = {
        f"{folder}/a.jpg": PICTURE,
        f"{folder}/a.xml": voc(DOG),
        "x_train/b.jpg": PICTURE,
        "x_train/b.xml": voc(CAT),
    }
    data = opened(write(tmp_path, files))
    assert read(data)[folder] == {"a.jpg": [DOG_BOX]}
    if not folder.startswith("train"):
        assert data.training_split(DataConfig()).name == "x_train"
        assert data.evaluation_split(DataConfig()).name == folder


def test_a_folder_that_only_sounds_like_a_split_is_none(tmp_path: Path) -> None:
    data = opened(write(tmp_path, {"test_tubes/a.jpg": PICTURE, "test_tubes/a.xml": voc(DOG)}))
    assert list(data.splits) == ["train"]


def test_lists_with_train_in_their_names_are_splits_but_lists_per_class_are_not(tmp_path: Path) -> None:
    files = {
        **pictures("JPEGImages/a.jpg", "JPEGImages/b.jpg"),
        "Annotations/a.xml": voc(DOG),
        "Annotations/b.xml": voc(CAT),
        "ImageSets/Main/cards_train.txt": "a\n",
        "ImageSets/Main/cards_test.txt": "b\n",
    }
    data = opened(write(tmp_path, files))
    assert read(data) == {"cards_test": {"b.jpg": [CAT_BOX]}, "cards_train": {"a.jpg": [DOG_BOX]}}
    assert data.split("train").name == "cards_train"
    assert data.evaluation_split(DataConfig()).name == "cards_test"
    write(tmp_path, {"ImageSets/Main/train.txt": "a\nb\n", "ImageSets/Main/dog_train.txt": "a  1\nb -1\n"})
    assert sorted(opened(tmp_path).splits) == ["cards_test", "cards_train", "train"]  # dog_train is a list of one class


def test_only_lists_per_class_make_splits_of_all_their_images(tmp_path: Path) -> None:
    files = {
        **pictures("JPEGImages/a.jpg", "JPEGImages/b.jpg"),
        "Annotations/a.xml": voc(DOG),
        "Annotations/b.xml": voc(CAT),
        "ImageSets/Main/dog_train.txt": "a  1\nb -1\n",
        "ImageSets/Main/cat_train.txt": "a -1\nb  1\n",
    }
    data = opened(write(tmp_path, files))
    assert read(data) == {"train": {"a.jpg": [DOG_BOX], "b.jpg": [CAT_BOX]}}
    assert note(data, "Main has only lists per class (cat_train, dog_train); a split has the images of all")


def test_names_that_end_like_flags_stay_names(tmp_path: Path) -> None:
    files = {
        "JPEGImages/shot 1.jpg": PICTURE,
        "Annotations/shot 1.xml": voc(DOG),
        "ImageSets/Main/train.txt": "shot 1\n",
    }
    assert read(opened(write(tmp_path, files))) == {"train": {"shot 1.jpg": [DOG_BOX]}}


@pytest.mark.parametrize(("height", "width"), [(0, 0), (-1, -1), (0, 40), ("", "")])
def test_a_size_of_0_or_minus_1_is_not_given(height: object, width: object, tmp_path: Path) -> None:
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    data = opened(write(tmp_path, {"train/a.jpg": PICTURE, "train/a.xml": voc(DOG, size=size)}))
    assert read(data) == {"train": {"a.jpg": [DOG_BOX]}}


def test_a_size_that_contradicts_the_image_is_refused(tmp_path: Path) -> None:
    size = "<size><width>40</width><height>30</height></size>"
    with pytest.raises(UserError, match=r"width and height in a.xml are 40x30, but the file has 40x20"):
        opened(write(tmp_path, {"train/a.jpg": PICTURE, "train/a.xml": voc(DOG, size=size)}))


def test_a_box_that_reaches_out_of_its_image_is_clipped(tmp_path: Path) -> None:
    data = opened(write(tmp_path, {"train/a.jpg": PICTURE, "train/a.xml": voc(("dog", 31, 11, 50, 20))}))
    assert read(data) == {"train": {"a.jpg": [("dog", 30, 10, 40, 20)]}}
    assert note(data, "repaired") == "repaired: 1 box clipped to the image (a.jpg)"


def test_an_object_that_stands_twice_counts_once(tmp_path: Path) -> None:
    data = opened(write(tmp_path, {"train/a.jpg": PICTURE, "train/a.xml": voc(DOG, CAT, DOG, ("cat", *DOG[1:]))}))
    assert read(data) == {"train": {"a.jpg": [DOG_BOX, CAT_BOX, ("cat", *DOG_BOX[1:])]}}
    assert note(data, "repaired") == "repaired: 1 box removed that repeats another one of the same class (a.jpg)"


def test_a_class_whose_objects_are_all_difficult_is_told(tmp_path: Path) -> None:
    body = voc_object(DOG, difficult=1) + voc_object(CAT)
    data = opened(write(tmp_path, {"train/a.jpg": PICTURE, "train/a.xml": f"<annotation>{SIZE}{body}</annotation>"}))
    expected = "1 class whose objects are all crowds or difficult, so neither learned nor measured: dog"
    assert note(data, "1 class") == expected


def test_images_without_a_file_and_files_of_another_kind_are_told(tmp_path: Path) -> None:
    files = {**pictures("train/a.jpg", "train/b.jpg"), "train/a.xml": voc(DOG), "train/project.xml": "<project/>"}
    data = opened(write(tmp_path, files))
    assert read(data) == {"train": {"a.jpg": [DOG_BOX]}}
    assert note(data, "1 image") == "1 image without an annotation file, left out: b.jpg"
    assert note(data, "1 XML file") == "1 XML file of another kind, left out: project.xml"


def test_files_outside_of_the_split_folders_are_told(tmp_path: Path) -> None:
    files = {**pictures("train/a.jpg", "b.jpg"), "train/a.xml": voc(DOG), "b.xml": voc(CAT)}
    data = opened(write(tmp_path, files))
    assert data.classes == ("dog",)
    assert note(data, "1 file") == "1 file in no folder of a split (train), left out: b.xml"


def test_lists_beside_the_folders_name_images_with_a_file(tmp_path: Path) -> None:
    files = {**pictures("a.jpg", "b.jpg"), "a.xml": voc(DOG), "b.xml": voc(CAT), "train.txt": "a"}
    assert note(opened(write(tmp_path, files)), "1 file") == "1 file in no list, left out: b.xml"
    with pytest.raises(UserError, match=r"train.txt: 'z' has no annotation file; correct or remove the line"):
        opened(write(tmp_path, {"train.txt": "z\na\nb"}))


def test_two_files_for_one_image_are_refused(tmp_path: Path) -> None:
    files = {"images/a.jpg": PICTURE, "first/a.xml": voc(DOG), "second/a.xml": voc(CAT)}
    with pytest.raises(UserError, match=r"a.jpg: both .*first/a.xml and .*second/a.xml belong to it by their names"):
        opened(write(tmp_path, files))


def test_an_image_that_can_be_either_of_two_is_refused(tmp_path: Path) -> None:
    files = {**pictures("images/train/a.jpg", "images/test/a.jpg"), "Annotations/a.xml": voc(DOG)}
    with pytest.raises(
        UserError, match=r"a.xml: .*test/a.jpg and .*train/a.jpg belong to it by their names; put it be"
    ):
        opened(write(tmp_path, files))


def test_several_voc_sets_in_a_folder_are_refused(tmp_path: Path) -> None:
    files = {}
    for year in ("VOC2007", "VOC2012"):
        files |= {f"{year}/JPEGImages/a.jpg": PICTURE, f"{year}/Annotations/a.xml": voc(DOG)}
        files |= {f"{year}/ImageSets/Main/train.txt": "a"}
    with pytest.raises(UserError, match=r"lists of images in .*VOC2007, .*VOC2012; give one folder"):
        opened(write(tmp_path, files))


def test_an_image_that_is_missing_is_named(tmp_path: Path) -> None:
    files = {"train/a.jpg": PICTURE, "train/a.xml": voc(DOG), "train/b.xml": voc(CAT)}
    with pytest.raises(UserError, match=r"train/b.jpg: the image file does not exist"):
        opened(write(tmp_path, files))


def test_the_same_images_in_two_splits_are_told(tmp_path: Path) -> None:
    files = {"JPEGImages/a.jpg": PICTURE, "Annotations/a.xml": voc(DOG)}
    files |= {"ImageSets/Main/train.txt": "a", "ImageSets/Main/val.txt": "a", "ImageSets/Main/trainval.txt": "a"}
    data = opened(write(tmp_path, files))
    assert note(data, "1 image of train") == "1 image of train also in val (a.jpg)"


@pytest.mark.parametrize(
    ("box", "size", "words"),
    [
        (("dog", 1, 1, 20, 40), (20, 40), "repaired: 1 image rotated upright"),  # fits the upright picture only
        (("dog", 1, 1, 40, 20), (40, 20), "repaired: 1 image kept without its EXIF rotation"),
    ],
)
def test_the_boxes_decide_the_frame_of_a_rotated_image(
    tmp_path: Path, box: tuple[str, int, int, int, int], size: tuple[int, int], words: str
) -> None:
    root = write(tmp_path, {"a.xml": voc(box)})  # the file declares the stored size
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "a.jpg", exif=exif)
    data = opened(root, on_bad_record="stop")
    (record,) = [record for split in data.splits.values() for record in split.records]
    assert (record.width, record.height) == size
    assert note(data, words)
