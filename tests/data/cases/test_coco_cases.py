"""COCO files as tools write them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from detdistill.data import Data, Faults, Split
from detdistill.data import coco as coco_format
from detdistill.errors import UserError
from detdistill.recipe import DataConfig

CATEGORIES = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]


def coco(*names: str, annotations: Any = None, **fields: Any) -> dict[str, Any]:
    """The content of a COCO file: images of 40 x 20 with ids from 1, and one dog in each or these annotations."""
    boxes = [{"id": id, "image_id": id, "category_id": 1, "bbox": [1, 2, 10, 5]} for id in range(1, len(names) + 1)]
    images = [{"id": id, "file_name": name, "width": 40, "height": 20} for id, name in enumerate(names, start=1)]
    return {
        "images": images,
        "annotations": boxes if annotations is None else annotations,
        "categories": CATEGORIES,
    } | fields


def write(path: Path, content: Any, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding=encoding)
    return path


def read(path: Path, on_bad_record: Literal["stop", "skip"] = "stop") -> Data:
    """What is read of a folder or a file, before data without splits are divided."""
    return assembled(coco_format.find(path), on_bad_record)


def assembled(sources: Mapping[str, coco_format.Source], on_bad_record: Literal["stop", "skip"] = "stop") -> Data:
    faults = Faults(on_bad_record)
    found = coco_format.read(sources, faults)
    splits = {name: Split(name, records, found.classes, found.category_ids) for name, records in found.splits.items()}
    return Data("coco", found.classes, found.category_ids, splits, (*found.notes, *faults.notes()), faults)


def places(data: Data, root: Path) -> dict[str, list[str]]:
    """The image files of each split."""
    return {
        name: [record.path.relative_to(root).as_posix() for record in split.records if record.path is not None]
        for name, split in data.splits.items()
    }


FOUND = {  # case: the JSON files with the names they give, and the images that must be read by split
    "Roboflow": (
        {"train/_annotations.coco.json": ["a.png"], "valid/_annotations.coco.json": ["b.png"]},
        {"train": ["train/a.png"], "valid": ["valid/b.png"]},
    ),
    "Roboflow without splits": ({"_annotations.coco.json": ["a.png"]}, {"all": ["a.png"]}),
    "any name beside the images": ({"export.json": ["a.png", "b.png"]}, {"all": ["a.png", "b.png"]}),
    "names that say the split": (
        {"my_train.json": ["a.png"], "my-Validation.json": ["b.png"]},
        {"val": ["images/b.png"], "train": ["images/a.png"]},
    ),
    "Label Studio on Windows": ({"result.json": ["images\\a.png"]}, {"all": ["images/a.png"]}),
    "Label Studio with local files": (
        {"result.json": ["/data/local-files/?d=photos/a.png"]},
        {"all": ["images/a.png"]},
    ),
    "an address": ({"result.json": ["https://host.org/x/a%20b.png"]}, {"all": ["images/a b.png"]}),
    "the path of another machine": ({"labels.json": ["C:\\me\\data\\a.png"]}, {"all": ["data/a.png"]}),
    "split folders with long names": (
        {"training/labels.json": ["a.png"], "Test/labels.json": ["a.png"]},
        {"test": ["Test/images/a.png"], "train": ["training/images/a.png"]},
    ),
    "CVAT": ({"annotations/instances_default.json": ["a.png"]}, {"all": ["images/default/a.png"]}),
    "one file of any name": ({"annotations/cells.json": ["a.png"]}, {"all": ["images/a.png"]}),
    "several files of any name": (
        {"annotations/east.json": ["a.png"], "annotations/west.json": ["b.png"]},
        {"east": ["images/a.png"], "west": ["images/b.png"]},
    ),
    "LVIS": (
        {"annotations/lvis_v1_train.json": ["a.png"], "annotations/lvis_v1_val.json": ["b.png", "c.png"]},
        {"train": ["train2017/a.png"], "val": ["train2017/b.png", "val2017/c.png"]},
    ),
    "two folders and a pile": (
        {"annotations/all.json": ["a.png", "c.png"]},
        {"all": ["train2017/a.png", "val2017/c.png"]},
    ),
}


@pytest.mark.parametrize(("files", "expected"), FOUND.values(), ids=FOUND)
def test_coco_files_of_many_layouts_are_found_with_their_images(tmp_path, write_image, files, expected):
    for name, images in files.items():
        write(tmp_path / name, coco(*images))
    for image in {image for images in expected.values() for image in images}:
        write_image(tmp_path / image)
    data = read(tmp_path)
    assert places(data, tmp_path) == expected
    assert (data.classes, data.category_ids) == (("cat", "dog"), (0, 1))
    assert [box.tolist() for box in data.splits[next(iter(expected))].records[0].boxes] == [[1, 2, 11, 7]]


@pytest.mark.parametrize(
    ("file", "image", "split"),
    [
        ("export.json", "a.png", "all"),
        ("export.json", "images/a.png", "all"),
        ("my_test.json", "a.png", "test"),
        ("annotations/instances_val2017.json", "val2017/a.png", "val"),
        ("annotations/x.JSON", "images/a.png", "all"),
        ("valid/_annotations.coco.json", "valid/a.png", "valid"),
        ("labels/x.json", "data/a.png", "all"),
    ],
)
def test_a_coco_file_alone_is_one_split(tmp_path, write_image, file, image, split):
    write(tmp_path / "annotations/instances_train2017.json", coco("other.png"))
    path = write(tmp_path / file, coco("a.png"))
    write_image(tmp_path / image)
    assert places(read(path), tmp_path) == {split: [image]}


def test_images_of_an_explicit_folder_may_lie_in_two_folders_in_it(tmp_path, write_image):
    annotations = write(tmp_path / "x.json", coco("a.png", "b.png"))
    for image in ("photos/east/a.png", "photos/west/b.png"):
        write_image(tmp_path / image)
    data = assembled({"train": coco_format.Source(annotations, (tmp_path / "photos",))})
    assert places(data, tmp_path) == {"train": ["photos/east/a.png", "photos/west/b.png"]}
    east, west = tmp_path / "photos/east", tmp_path / "photos/west"
    assert data.notes == (f"x.json: of 2 images, 1 in {east} and 1 in {west}",)


def test_a_json_file_of_another_kind_is_named(tmp_path):
    path = write(tmp_path / "shapes.json", {"shapes": []})
    with pytest.raises(UserError, match=r"shapes.json: field 'images' is missing or not a list; a COCO file has"):
        read(path)


def test_json_files_without_objects_are_not_read_and_named(tmp_path, write_image):
    folder = tmp_path / "annotations"
    write(folder / "instances_train2017.json", coco("a.png"))
    write(folder / "person_keypoints_train2017.json", coco("a.png", categories=[{"id": 1, "name": "person"}]))
    write(folder / "captions_train2017.json", {"images": [], "annotations": [{"id": 1, "caption": "a cat"}]})
    write(folder / "panoptic_train2017.json", coco("a.png", annotations=[{"image_id": 1, "segments_info": []}]))
    write(folder / "extra.json", coco("a.png"))
    write_image(tmp_path / "train2017/a.png")
    data = read(tmp_path)
    assert list(data.splits) == ["train"]
    assert data.notes == (
        "not read: captions_train2017.json, panoptic_train2017.json, because it has no objects of COCO's format",
        "not read: extra.json, person_keypoints_train2017.json, because instances_train2017.json has COCO's own name; "
        "name all files of objects like it",
    )


def test_names_that_begin_again_in_each_folder_do_not_lead_to_the_images_of_another_split(tmp_path, write_image):
    write(tmp_path / "annotations/train.json", coco("1.png", "2.png"))
    for image in ("train2017/1.png", "val2017/1.png", "val2017/2.png"):
        write_image(tmp_path / image)
    with pytest.raises(UserError, match=r"train2017/2.png: the image file does not exist \(the only one missing of 2 "):
        read(tmp_path)
    (tmp_path / "train2017/1.png").unlink()
    write(tmp_path / "annotations/val.json", coco("1.png", "2.png"))
    with pytest.raises(UserError, match=r"train.json: images: no image was found \(looked for 1.png in .*train"):
        read(tmp_path)


def test_lvis_without_file_names(tmp_path, write_image):
    images = [
        {"id": 1, "coco_url": "http://images.org/train2017/1.png", "neg_category_ids": [1], "width": 40, "height": 20},
        {"id": 2, "coco_url": "http://images.org/val2017/1.png", "neg_category_ids": [], "width": 40, "height": 20},
    ]
    write(tmp_path / "lvis_v1_val.json", coco(images=images, annotations=[]))
    for folder in ("train2017", "val2017"):
        write_image(tmp_path / folder / "1.png")
    data = read(tmp_path)
    assert places(data, tmp_path) == {"val": ["train2017/1.png", "val2017/1.png"]}
    assert data.notes[-1].startswith("neg_category_ids of LVIS is not read")


def test_missing_images_are_counted(tmp_path, write_image):
    write(tmp_path / "x.json", coco("a.png", "b.png", "c.png"))
    write_image(tmp_path / "images/b.png")
    message = r"images/a.png: the image file does not exist \(of 3 images in x.json, 2 are missing\); restore the file"
    with pytest.raises(UserError, match=message):
        read(tmp_path)
    data = read(tmp_path, on_bad_record="skip")
    assert places(data, tmp_path) == {"all": ["images/b.png"]}
    assert len(data.faults.skipped) == 2


def test_an_image_that_is_listed_twice_is_told(tmp_path, write_image):
    content = coco("a.png", "images/a.png", "./a.png")
    content["images"].append(content["images"][0])  # the same entry again changes nothing
    write_image(tmp_path / "a.png")
    write(tmp_path / "x.json", content)
    with pytest.raises(
        UserError, match=r"x.json: images\[1\]: file_name images/a.png leads to .*, which is also a.png"
    ):
        read(tmp_path)
    del content["images"][1], content["annotations"][1]
    write(tmp_path / "x.json", content)
    data = read(tmp_path)
    assert [record.id for record in data.split("all").records] == [1, 3]
    assert data.notes[-1] == (
        "x.json: 1 image listed again with another id (./a.png); "
        "each entry has only its own objects, so join the entries"
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_files_in_any_encoding(tmp_path, write_image, encoding):
    categories = [{"id": 1, "name": "żółw"}]
    write(tmp_path / "result.json", coco("a.png", categories=categories), encoding)
    write_image(tmp_path / "images/a.png")
    assert read(tmp_path).classes == ("żółw",)


def test_ids_of_any_kind_are_kept_for_the_results(tmp_path, write_image):
    ids = ["x1", "2", 2**64, -3, 5.0]
    content = coco(*"abcde")
    for id, image, annotation in zip(ids, content["images"], content["annotations"], strict=True):
        image |= {"id": id, "file_name": f"{image['file_name']}.png"}
        annotation |= {"image_id": id, "category_id": "0"}
        write_image(tmp_path / image["file_name"])
    content["annotations"][1]["image_id"] = 2  # written as "2" among the images
    content["annotations"][2] |= {"id": "x", "category_id": "k"}
    content["categories"] = [{"id": "k", "name": "king"}, {"id": "0", "name": "cat"}]
    write(tmp_path / "x.json", content)
    data = read(tmp_path)
    records = data.split("all").records
    assert [record.id for record in records] == [1, 2, 3, 4, 5]
    assert [record.file_id for record in records] == ["x1", "2", 2**64, -3, None]  # None: the file has 5 as well
    assert [record.labels.tolist() for record in records] == [[0], [0], [1], [0], [0]]
    assert (data.classes, data.category_ids) == (("cat", "king"), ("0", "k"))
    assert data.notes[-1].startswith("image ids of all are renumbered, because")
    assert data.notes[-1].endswith("; results have the ids of the file")


def test_whole_numbers_stay_the_ids(tmp_path, write_image):
    content = coco("a.png", "b.png")
    for id, image, annotation in zip((2**63 - 1, 7.0), content["images"], content["annotations"], strict=True):
        image["id"] = annotation["image_id"] = id
        write_image(tmp_path / image["file_name"])
    write(tmp_path / "x.json", content)
    data = read(tmp_path)
    assert [(record.id, record.file_id) for record in data.split("all").records] == [(2**63 - 1, None), (7, None)]
    assert not data.notes


def test_the_root_category_is_left_out_in_a_file_of_any_name(tmp_path, write_image):
    categories = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "pets"},
        {"id": 2, "name": "dog", "supercategory": "pets"},
    ]
    write_image(tmp_path / "a.png")
    write(tmp_path / "merged.json", coco("a.png", categories=categories))
    data = read(tmp_path)
    assert data.classes == ("cat", "dog")
    assert "category 0 ('pets') is left out: it is a heading without objects" in data.notes
    write(
        tmp_path / "merged.json", coco("a.png", categories=[*categories, {"id": 3, "name": "x", "supercategory": ""}])
    )
    assert "pets" in read(tmp_path).classes  # not all others are below it


def test_a_split_of_crowds_is_told(tmp_path, write_image):
    content = coco("a.png", "b.png")
    for annotation in content["annotations"]:
        annotation["iscrowd"] = "1"
        write_image(tmp_path / content["images"][annotation["id"] - 1]["file_name"])
    write(tmp_path / "train.json", content)
    data = read(tmp_path)
    assert data.notes[-1] == (
        "split 'train': all 2 objects are crowds (iscrowd 1), which are no targets of training; "
        "correct iscrowd if they are single objects"
    )
    with pytest.raises(UserError, match="split 'train': all objects are crowds; correct the annotations"):
        data.training_split(DataConfig())
