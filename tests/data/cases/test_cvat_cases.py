"""annotations.xml of CVAT for images 1.1."""

from pathlib import Path

import pytest

from detdistill.errors import UserError

from .builders import PICTURE, cvat, cvat_box, cvat_image, note, opened, pictures, read, united, write

DOG, CAT = cvat_box("dog", 10, 5, 30, 15), cvat_box("cat", 0, 0, 20, 20)
DOG_BOX, CAT_BOX = ("dog", 10, 5, 30, 15), ("cat", 0, 0, 20, 20)

SHAPES = {
    "box": (DOG, [DOG_BOX]),
    "rotated box": (cvat_box("dog", 10, 8, 30, 12, more='rotation="90.0"'), [("dog", 18, 0, 22, 20)]),
    "polygon": ('<polygon label="dog" points="1,2;8,4.0;5,9"/>', [("dog", 1, 2, 8, 9)]),
    "polyline": ('<polyline label="dog" points="1,2;8,4"/>', [("dog", 1, 2, 8, 4)]),
    "ellipse": ('<ellipse label="dog" cx="20" cy="10" rx="5" ry="4"/>', [("dog", 15, 6, 25, 14)]),
    "rotated ellipse": (
        '<ellipse label="dog" cx="20" cy="10" rx="8" ry="4" rotation="270"/>',
        [("dog", 16, 2, 24, 18)],
    ),
    "mask": ('<mask label="dog" rle="1, 2" left="3" top="4" width="5" height="6"/>', [("dog", 3, 4, 8, 10)]),
    "cuboid": (
        '<cuboid label="dog" xtl1="1" ytl1="2" xbr1="9" ybr1="8" xtl2="3" ytl2="1" xbr2="12" ybr2="7" z_order="0"/>',
        [("dog", 1, 1, 12, 8)],
    ),
    "skeleton": (
        '<skeleton label="dog"><points label="nose" points="3,4" outside="0"/><points label="tail" points="9,8"/>'
        '<points label="ear" points="39,19" outside="1"/></skeleton>',
        [("dog", 3, 4, 9, 8)],
    ),
    "single point": ('<points label="dog" points="3,4"/>', []),
}


@pytest.mark.parametrize(("element", "expected"), SHAPES.values(), ids=SHAPES)
def test_shapes(element: str, expected: list, tmp_path: Path) -> None:
    files = {"images/a.jpg": PICTURE, "annotations.xml": cvat(cvat_image("a.jpg", element, subset="Train"))}
    data = opened(write(tmp_path, files))
    assert data.layout == "cvat"
    assert read(data) == {"Train": {"a.jpg": expected}}
    assert bool(expected) or note(data, "repaired") == "repaired: 1 box of zero size removed (a.jpg)"


@pytest.mark.parametrize("subsets", [("Train", "Validation"), ("train", "test")])
@pytest.mark.parametrize("place", ["images/{}/{}", "images/{1}", "{1}", "{}/{}"])
def test_subsets_are_splits(subsets: tuple[str, str], place: str, tmp_path: Path) -> None:
    first, second = subsets
    entries = cvat_image("a.jpg", DOG, subset=first), cvat_image("b.jpg", CAT, subset=second)
    files = {**pictures(place.format(first, "a.jpg"), place.format(second, "b.JPG")), "annotations.xml": cvat(*entries)}
    data = opened(write(tmp_path, files))
    assert read(data) == {first: {"a.jpg": [DOG_BOX]}, second: {"b.jpg": [CAT_BOX]}}
    assert data.split("train").name == first


@pytest.mark.parametrize("subset", ["", "default"])
def test_data_without_subsets(subset: str, tmp_path: Path) -> None:
    entries = cvat_image("a.jpg", DOG, subset=subset), cvat_image("x/b.jpg", CAT, subset=subset, height=0, width=-1)
    files = {**pictures("images/a.jpg", "images/x/b.jpg"), "annotations.xml": cvat(*entries)}
    write(tmp_path, files)
    for path in (tmp_path, tmp_path / "annotations.xml"):
        data = opened(path)
        assert united(read(data)) == {"a.jpg": [DOG_BOX], "x/b.jpg": [CAT_BOX]}
        assert note(data, "the data set has no splits: ")


def test_one_file_per_split_and_an_encoding_of_windows(tmp_path: Path) -> None:
    first, second = cvat(cvat_image("a.jpg", DOG)), cvat(cvat_image("b.jpg", CAT))
    files = {**pictures("images/a.jpg", "images/b.jpg"), "train.xml": first.encode("utf-16")}
    data = opened(write(tmp_path, {**files, "test.xml": "\n " + second.replace("\n", "\r")}))
    assert read(data) == {"test": {"b.jpg": [CAT_BOX]}, "train": {"a.jpg": [DOG_BOX]}}


def test_files_in_a_folder_of_their_own(tmp_path: Path) -> None:
    entries = cvat_image("a.jpg", DOG, subset="train"), cvat_image("b.jpg", CAT, subset="test")
    files = {f"{number}/annotations.xml": cvat(entry) for number, entry in enumerate(entries)}
    data = opened(write(tmp_path, {**pictures("images/a.jpg", "1/images/test/b.jpg"), **files}))
    assert read(data) == {"train": {"a.jpg": [DOG_BOX]}, "test": {"b.jpg": [CAT_BOX]}}


def test_classes_are_in_the_order_of_the_labels(tmp_path: Path) -> None:
    skeleton = "<label><name>nose</name><parent>dog</parent></label>"
    text = cvat(cvat_image("a.jpg", CAT, subset="train"), labels=("dog", "bird", "cat"))
    text = text.replace("</labels>", f"{skeleton}</labels>")
    data = opened(write(tmp_path, {"images/a.jpg": PICTURE, "annotations.xml": text}))
    assert (data.classes, data.category_ids) == (("dog", "bird", "cat"), (1, 2, 3))
    assert note(data, "2 classes") == "2 classes without objects: dog, bird"


def test_what_is_not_read_is_told(tmp_path: Path) -> None:
    entries = cvat_image("a.jpg", DOG, '<tag label="night"/>', subset="train"), cvat_image("b.jpg", CAT)
    data = opened(write(tmp_path, {**pictures("images/a.jpg", "images/b.jpg"), "annotations.xml": cvat(*entries)}))
    assert read(data) == {"train": {"a.jpg": [DOG_BOX]}}
    assert note(data, "1 tag") == "1 tag not read, because it marks no place in its image"
    assert note(data, "1 image") == "1 image in no subset (train), left out: b.jpg"


IMAGE = cvat_image("a.jpg", DOG)
REFUSED = {
    "video": (
        cvat('<track id="0" label="dog"/>'),
        "the file has tracks of a video; export it as 'CVAT for images 1.1'",
    ),
    "no image": (cvat(), "the file has no image; export it as 'CVAT for images 1.1'"),
    "no label": (cvat(cvat_image("a.jpg"), labels=()), "the file has no label; add the classes in CVAT"),
    "damaged": (cvat(IMAGE)[:-8], "annotations.xml: the file is not XML"),
    "twice": (cvat(IMAGE, IMAGE), "a.jpg: the image stands twice in .*annotations.xml; remove one of its entries"),
    "missing image": (cvat(cvat_image("z.jpg", DOG)), "images/z.jpg: the image file does not exist"),
    "nameless shape": (cvat(cvat_image("a.jpg", cvat_box("", 1, 1, 2, 2))), "image 'a.jpg': box 1: label is missing"),
    "no number": (
        cvat(cvat_image("a.jpg", '<polygon label="dog" points="1,2;3"/>')),
        r"image 'a.jpg': polygon 1 \(dog\): its coordinates are missing or no numbers",
    ),
    "wrong size": (cvat(cvat_image("a.jpg", DOG, height=30)), "width and height in annotations.xml are 40x30, but"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        opened(write(tmp_path, {"images/a.jpg": PICTURE, "annotations.xml": text}))
