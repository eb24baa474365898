"""Boxes, areas and image sizes in COCO files as tools write them."""

from pathlib import Path
from typing import Any

import pytest

from detdistill.data import Record
from detdistill.errors import UserError

from .test_coco_cases import coco, read, write

POLYGON = [[2, 3, 12, 3, 12, 8]]  # half of a 10 x 5 box
MASK = {"size": [20, 40], "counts": [43, 2, 18, 2, 735]}  # rows 3 and 4 of columns 2 and 3
COMPRESSED = {"size": [20, 40], "counts": "[12b00]f0"}  # the same mask, compressed


@pytest.fixture
def record(tmp_path, write_image):
    """record(annotation, ...) reads the annotations of one 40 x 20 image."""

    def build(*annotations: dict[str, Any], **fields: Any) -> Record:
        write_image(tmp_path / "a.png")
        rows = [{"image_id": 1, "category_id": 1, **annotation} for annotation in annotations]
        write(tmp_path / "x.json", coco("a.png", annotations=rows))
        (found,) = read(tmp_path, **fields).split("all").records
        return found

    return build


BOXES = {  # case: the annotation, its box xyxy and its area
    "numbers as text": ({"bbox": ["1.5", "2", "10", "5"]}, [1.5, 2, 11.5, 7], 50),
    "polygon": ({"segmentation": POLYGON}, [2, 3, 12, 8], 25),
    "polygon, no list around it": ({"segmentation": POLYGON[0], "bbox": None}, [2, 3, 12, 8], 25),
    "polygon of points": ({"segmentation": [[[2, 3], [12, 3], [12, 8]]], "bbox": []}, [2, 3, 12, 8], 25),
    "polygon of text": ({"segmentation": [["2", "3", "12", "3", "12", "8.0"]]}, [2, 3, 12, 8], 25),
    "two polygons": ({"segmentation": [*POLYGON, [20, 10, 30, 10, 30, 20, 20, 20]]}, [2, 3, 30, 20], 125),
    "mask": ({"segmentation": MASK}, [2, 3, 4, 5], 4),
    "compressed mask": ({"segmentation": COMPRESSED}, [2, 3, 4, 5], 4),
    "area of the polygon": ({"bbox": [2, 3, 10, 5], "segmentation": POLYGON, "area": 0}, [2, 3, 12, 8], 25),
    "area of the mask": ({"bbox": [0, 0, 4, 5], "segmentation": MASK, "area": "none"}, [0, 0, 4, 5], 4),
    "area as text": ({"bbox": [2, 3, 10, 5], "segmentation": POLYGON, "area": "33.5"}, [2, 3, 12, 8], 33.5),
    "area of the box": ({"bbox": [2, 3, 10, 5], "segmentation": [], "area": None}, [2, 3, 12, 8], 50),
    "damaged polygon beside a box": ({"bbox": [2, 3, 10, 5], "segmentation": [[1, 2]]}, [2, 3, 12, 8], 50),
}


@pytest.mark.parametrize(("annotation", "box", "area"), BOXES.values(), ids=BOXES)
def test_the_box_and_the_area_of_an_annotation(record, annotation, box, area):
    found = record(annotation)
    assert found.corners.tolist() == [box]
    assert found.areas.tolist() == [area]
    assert found.labels.tolist() == [1]


WRONG = {
    "nothing": ({"bbox": None}, r"bbox is None and there is no segmentation; write \[x, y, width, height\]"),
    "two points": ({"segmentation": [[1, 2, 3, 4]]}, "bbox is None and segmentation has a polygon of 4 numbers; write"),
    "text": ({"segmentation": "none"}, "bbox is None and segmentation is neither a list of polygons nor a mask"),
    "long mask": ({"segmentation": {"size": [2, 2], "counts": [1, 9]}}, "counts of 10 pixels, but the size 2 x 2"),
    "no mask": ({"segmentation": {"size": [20, 40], "counts": "é"}}, "counts that are no compressed mask"),
    "another image": (
        {"segmentation": {"size": [40, 20], "counts": [3, 5]}},
        "segmentation is 20x40, but the image 40x20; write bbox",
    ),
}


@pytest.mark.parametrize(("annotation", "message"), WRONG.values(), ids=WRONG)
def test_an_annotation_without_a_box_is_rejected(record, annotation, message):
    with pytest.raises(UserError, match=r"x.json: annotations\[1\] \(a.png\): .*" + message):
        record({"bbox": [1, 2, 3, 4]}, annotation)
    assert record({"bbox": [1, 2, 3, 4]}, annotation, on_bad_record="skip").corners.tolist() == [[1, 2, 4, 6]]


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_corners_and_fractions_stop_the_run(record, policy):
    message = (
        r"x.json: annotations: 2 of 3 boxes reach out of their image as \[x, y, width, height\], and fit as "
        r"\[x1, y1, x2, y2\]: bbox looks like corners; write \[x1, y1, x2 - x1, y2 - y1\]"
    )
    corners = [{"bbox": box} for box in ([2, 3, 12, 8], [20, 5, 40, 20], [30, 1, 38, 9])]
    with pytest.raises(UserError, match=message):
        record(*corners, on_bad_record=policy)
    with pytest.raises(
        UserError, match=r"x.json: annotations: no number of bbox is above 1: .* fractions of the image"
    ):
        record({"bbox": [0.1, 0.2, 0.5, 0.5]}, {"bbox": [0, 0, 1, 1]}, on_bad_record=policy)


def test_boxes_that_reach_out_but_are_no_corners_are_clipped(record):
    found = record({"bbox": [30, 1, 20, 9]}, {"bbox": [20, 5, 30, 20]}, {"bbox": [5, 5, 10, 10]})
    assert found.corners.tolist() == [[30, 1, 40, 10], [20, 5, 40, 20], [5, 5, 15, 15]]
    assert record({"bbox": [20, 5, 30, 10]}).corners.tolist() == [[20, 5, 40, 15]]  # one box says little


UPRIGHT, STORED = (20, 40), (40, 20)  # (width, height) of an image that is rotated by EXIF
TALL, WIDE, SMALL = [2, 20, 10, 18], [20, 2, 18, 10], [2, 2, 10, 10]  # fits upright, as stored, both


def rotated(root: Path, write_image, **images: tuple[Any, list[int]]) -> None:
    """Write a file of rotated images. images: the declared (width, height) and the box of each."""
    content = coco(*(f"{name}.jpg" for name in images))
    for image, annotation, (size, box) in zip(content["images"], content["annotations"], images.values(), strict=True):
        image |= {"width": size[0], "height": size[1]}
        annotation["bbox"] = box
        write_image(root / image["file_name"], *STORED, orientation=6)
    write(root / "x.json", content)


NONE = [(-1, -1), (0, 0), (None, None), (40, None), ("", "")]


@pytest.mark.parametrize("declared", [UPRIGHT, STORED, *NONE])
@pytest.mark.parametrize(("box", "size"), [(TALL, UPRIGHT), (WIDE, STORED)])
def test_the_boxes_say_whether_a_rotated_image_is_upright(tmp_path, write_image, declared, box, size):
    rotated(tmp_path, write_image, a=(declared, box))
    data = read(tmp_path)
    (found,) = data.split("all").records
    assert (found.width, found.height) == found.image().size == size
    assert found.corners.tolist() == [[box[0], box[1], box[0] + box[2], box[1] + box[3]]]
    assert not any("check" in note for note in data.notes)
    repaired = [note for note in data.notes if note.startswith("repaired: 1 image")]
    assert len(repaired) == (size == STORED or declared == STORED)


@pytest.mark.parametrize(("declared", "size"), [(UPRIGHT, UPRIGHT), (STORED, STORED), ((0, 0), UPRIGHT)])
def test_where_both_fit_the_declared_size_decides_and_the_images_are_named(tmp_path, write_image, declared, size):
    rotated(tmp_path, write_image, a=(declared, SMALL), b=(declared, SMALL))
    data = read(tmp_path)
    assert {(found.width, found.height) for found in data.split("all").records} == {size}
    name = "upright" if size == UPRIGHT else "stored"
    assert (
        "check 2 images with an EXIF rotation (a.jpg, b.jpg): the boxes fit both the upright picture and the stored "
        f"pixels, and are taken for {name}; if this is wrong, save the images upright with that size"
    ) in data.notes


def test_where_both_fit_the_other_images_of_the_file_decide(tmp_path, write_image):
    rotated(tmp_path, write_image, a=(STORED, TALL), b=(STORED, SMALL))
    data = read(tmp_path)
    assert [(found.width, found.height) for found in data.split("all").records] == [UPRIGHT, UPRIGHT]
    assert any(note.startswith("check 1 image with an EXIF rotation (b.jpg)") for note in data.notes)
    rotated(tmp_path, write_image, a=(UPRIGHT, TALL), b=(UPRIGHT, SMALL))
    assert not read(tmp_path).notes  # the sizes and the boxes agree


def test_a_size_that_is_not_given_is_that_of_the_file(tmp_path, write_image):
    write_image(tmp_path / "a.png")
    for size in NONE:
        content = coco("a.png")
        content["images"][0] |= {"width": size[0], "height": size[1]}
        write(tmp_path / "x.json", content)
        (found,) = read(tmp_path).split("all").records
        assert (found.width, found.height) == (40, 20)
