"""Rows of YOLO label files: boxes, polygons, oriented boxes, key points, and rows that are no labels."""

from pathlib import Path

import numpy as np
import pytest

from detdistill.errors import UserError

from .builders import PICTURE, note, opened, read, write

YAML = "train: images\nnames: [cat, dog]\n"


def rows(tmp_path: Path, *texts: str, yaml: str = YAML) -> Path:
    """A data set with one image and these label rows."""
    files = {"images/a.jpg": PICTURE, "labels/a.txt": "\n".join(texts), "data.yaml": yaml}
    return write(tmp_path, files)


def boxes(path: Path) -> list[tuple]:
    """The objects of the only image."""
    return read(opened(path))["train"]["a.jpg"]


def random_boxes(count: int) -> np.ndarray:
    """(count, 4) cx cy w h anywhere in the image, at least 4 by 4 pixels large."""
    random = np.random.default_rng(0)
    size = random.uniform(0.2, 0.5, (count, 2))
    center = size / 2 + random.uniform(0, 1, (count, 2)) * (1 - size)
    return np.concatenate([center, size], axis=1)


def in_pixels(box: np.ndarray) -> tuple[int, ...]:
    """xyxy in whole pixels of a box cx cy w h."""
    cx, cy, w, h = box
    return tuple(round(side) for side in ((cx - w / 2) * 40, (cy - h / 2) * 20, (cx + w / 2) * 40, (cy + h / 2) * 20))


def row(*parts: object) -> str:
    """A row of class 1."""
    return " ".join(["1", *(f"{value:.6f}" for part in parts for value in np.ravel(part))])


def keypoints(box: np.ndarray, count: int, numbers: int) -> np.ndarray:
    """(count, numbers) key points at random places in the box, with a flag 0, 1 or 2 if there are three numbers."""
    random = np.random.default_rng(round(box.sum() * 1e6))
    points = box[:2] + (random.uniform(0, 1, (count, 2)) - 0.5) * box[2:]
    flags = random.integers(0, 3, (count, 1))
    points[flags[:, 0] == 0] = 0  # a key point that is not there
    return np.concatenate([points, flags], axis=1) if numbers == 3 else points


def corners(box: np.ndarray) -> np.ndarray:
    """(4, 2) corners of a box cx cy w h, in order."""
    return box[:2] + np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2 * box[2:]


@pytest.mark.parametrize("numbers", [2, 3])
@pytest.mark.parametrize("count", [1, 2, 4, 17])
def test_pose_rows_of_a_kpt_shape_give_their_box(count: int, numbers: int, tmp_path: Path) -> None:
    found = random_boxes(6)
    texts = [row(box, keypoints(box, count, numbers)) for box in found]
    path = rows(tmp_path, *texts, yaml=f"{YAML}kpt_shape: [{count}, {numbers}]\n")
    assert boxes(path) == [("dog", *in_pixels(box)) for box in found]


@pytest.mark.parametrize(("count", "numbers"), [(1, 3), (2, 3), (4, 2), (5, 2), (17, 3), (17, 2)])
def test_pose_rows_are_recognized_without_kpt_shape_and_told(count: int, numbers: int, tmp_path: Path) -> None:
    found = random_boxes(6)
    data = opened(rows(tmp_path, *(row(box, keypoints(box, count, numbers)) for box in found)))
    assert read(data)["train"]["a.jpg"] == [("dog", *in_pixels(box)) for box in found]
    length = 5 + count * numbers
    assert note(data, "label rows") == (
        f"label rows of {length} numbers are read as box and key points, because the first four numbers are a box "
        "around the others; if they are polygons, write `kpt_shape: none` into data.yaml"
    )


def test_polygons_of_any_length_give_their_bounding_box(tmp_path: Path) -> None:
    assert boxes(rows(tmp_path, "0 0.1 0.2 0.5 0.1 0.3 0.9", "1 0.5 0.5 1 0.5 1 1 0.5 1", "0 0.5 0.5 0.5 0.5")) == [
        ("cat", 4, 2, 20, 18),
        ("dog", 20, 10, 40, 20),
        ("cat", 10, 5, 30, 15),
    ]


@pytest.mark.parametrize("corner_count", [3, 4, 6])
def test_polygons_of_one_length_stay_polygons(corner_count: int, tmp_path: Path) -> None:
    turns = np.linspace(0, 2 * np.pi, corner_count, endpoint=False)
    found = random_boxes(30)
    shapes = [box[:2] + np.stack([np.cos(turns), np.sin(turns)], 1) / 2 * box[2:] for box in found]
    data = opened(rows(tmp_path, *(row(shape) for shape in shapes)))
    expected = [(*shape.min(0), *shape.max(0)) for shape in shapes]
    assert [item[1:] for item in read(data)["train"]["a.jpg"]] == [
        tuple(round(side) for side in np.multiply(box, (40, 20, 40, 20))) for box in expected
    ]
    assert not any(line.startswith("label rows") for line in data.notes)


def test_oriented_boxes_give_their_hull_even_where_they_look_like_key_points(tmp_path: Path) -> None:
    box = np.array([0.5, 0.5, 0.3, 0.3])  # its corner (0.35, 0.35) is also the center of a box around the others
    assert boxes(rows(tmp_path, row(corners(box)))) == [("dog", 14, 7, 26, 13)]


def test_rows_that_can_be_both_are_refused_and_kpt_shape_decides(tmp_path: Path) -> None:
    text = "1 0.45 0.45 0.5 0.4 0.55 0.45"  # a triangle, or a box with one key point
    with pytest.raises(UserError) as caught:
        opened(rows(tmp_path, text))
    assert str(caught.value) == (
        f"{tmp_path}/labels/a.txt: rows of 7 numbers may be polygons, or boxes with key points; write into data.yaml "
        "`kpt_shape: none` for polygons, or kpt_shape with the count of key points and 2 (x y) or 3 (x y visible)"
    )
    assert boxes(rows(tmp_path, text, yaml=f"{YAML}kpt_shape: none\n")) == [("dog", 18, 8, 22, 9)]
    assert boxes(rows(tmp_path, text, yaml=f"{YAML}kpt_shape: [1, 2]\n")) == [("dog", 8, 5, 28, 13)]


@pytest.mark.parametrize("shape", ["3", "[17]", "[17, 4]", "[0, 2]", "[a, 2]"])
def test_a_wrong_kpt_shape_is_refused(shape: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.yaml: kpt_shape is .*; write \[key points, 2 or 3\], such as \[17, 3\]"):
        opened(rows(tmp_path, "1 0.5 0.5 0.5 0.5", yaml=f"{YAML}kpt_shape: {shape}\n"))


REFUSED = {
    "confidence": (
        "1 0.5 0.5 0.5 0.5 0.93",
        "a.txt: line 1: '1 0.5 0.5 0.5 0.5 0.93' has a sixth column, a confidence: these are predictions, not labels; "
        "remove the column",
    ),
    "polygon with confidence": (
        "1 0.1 0.2 0.5 0.1 0.3 0.9 0.93",
        "has 8 numbers: a polygon with a confidence, or a box with key points; remove the confidence, or write",
    ),
    "confidence and track": (
        "1 0.5 0.5 0.5 0.5 0.93 2",
        "a.txt: the rows have a confidence and a track number in columns 6 and 7: these are predictions, not labels",
    ),
    "one row in pixels": (
        "1 320 240 700 500",
        "a.txt: line 1: '1 320 240 700 500' has numbers far outside of 0 to 1, which look like pixels",
    ),
    "polygon in pixels": ("1 10 10 20 10 20 20", "has numbers far outside of 0 to 1, which look like pixels"),
    "wrong count of key points": ("1 0.5 0.5 0.5 0.5 0.5 0.5 2", ""),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_rows_that_are_no_labels_are_named(text: str, message: str, tmp_path: Path) -> None:
    if not message:
        path = rows(tmp_path, text, yaml=f"{YAML}kpt_shape: [2, 3]\n")
        message = "has 8 numbers, but a row with key points has 11; correct the row or kpt_shape"
    else:
        path = rows(tmp_path, text)
    with pytest.raises(UserError) as caught:
        opened(path)
    assert message in str(caught.value)


def test_a_set_in_pixels_is_refused_even_if_bad_records_are_skipped(tmp_path: Path) -> None:
    path = rows(tmp_path, "0 20 10 12 8", "1 12 10 8 8", "0 0.5 0.5 0.5 0.5")
    with pytest.raises(UserError) as caught:
        opened(path, on_bad_record="skip")
    assert "labels/a.txt: 2 of 3 rows have numbers far outside of 0 to 1, such as '0 20 10 12 8'" in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_labels_of_any_encoding_and_line_end(encoding: str, end: str, tmp_path: Path) -> None:
    content = f"0 0.25 0.5 0.5 1{end}1 0.5 0.5 0.5 0.5{end}".encode(encoding)
    files = {"images/a.jpg": PICTURE, "labels/a.txt": content, "data.yaml": f"{YAML}".encode(encoding)}
    assert boxes(write(tmp_path, files)) == [("cat", 0, 0, 20, 20), ("dog", 10, 5, 30, 15)]
