"""COCO JSON: what is read, and the messages for faults."""

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from detdistill.data import EvalLoader, open_data
from detdistill.errors import UserError
from detdistill.recipe import DataConfig, SplitPaths


def opened(root: Path, **fields):
    """The data set in the folder."""
    return open_data(DataConfig(path=str(root), **fields))


def test_ids_with_gaps_become_classes_in_the_order_of_the_ids(coco_set):
    data = opened(coco_set())
    assert data.layout == "coco"
    assert (data.classes, data.category_ids) == (("cat", "dog"), (3, 7))
    assert set(data.splits) == {"train", "val"}
    first, second = data.split("train").records
    assert (first.id, first.name, first.height, first.width) == (10, "1.png", 20, 40)
    assert first.boxes.tolist() == [[1, 2, 11, 7], [20, 0, 40, 20]]
    assert first.boxes.dtype == torch.float32
    assert first.labels.tolist() == [1, 0]
    assert first.crowd.tolist() == [False, True]
    assert second.boxes.shape == (0, 4)
    assert data.notes[0] == "data: COCO JSON; images: train 2, val 2; 2 classes"


def test_pycocotools_reads_the_ground_truth(coco_set):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = opened(coco_set()).split("train").ground_truth()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = json.loads(json.dumps(truth))
        coco.createIndex()
        results = [{"image_id": 10, "category_id": 7, "bbox": [1, 2, 10, 5], "score": 0.9}]
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert coco.getCatIds() == [3, 7]
    annotation = coco.loadAnns(coco.getAnnIds(imgIds=10, catIds=7))[0]
    assert (annotation["bbox"], annotation["area"], annotation["iscrowd"]) == ([1, 2, 10, 5], 33.5, 0)
    assert evaluation.stats[0] == pytest.approx(1.0)  # the dog is detected; the cat is a crowd, so it can't be missed


def test_roboflow_folders_and_their_heading_category(tmp_path, write_image):
    for split in ("train", "valid"):
        write_image(tmp_path / split / "a.jpg")
        content = {
            "images": [{"id": 0, "file_name": "a.jpg", "width": 40, "height": 20}],
            "annotations": [{"id": 0, "image_id": 0, "category_id": 1, "bbox": [0, 0, 5, 5]}],
            "categories": [
                {"id": 0, "name": "pets", "supercategory": "none"},
                {"id": 1, "name": "cat", "supercategory": "pets"},
            ],
        }
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(content))
    data = opened(tmp_path)
    assert (data.classes, data.category_ids) == (("cat",), (1,))
    assert data.split("val") is data.split("valid")
    assert data.evaluation_split(DataConfig()).name == "valid"
    assert any("'pets'" in note for note in data.notes)


def test_explicit_paths(coco_set):
    root = coco_set()
    paths = SplitPaths(annotations=root / "annotations/instances_val2017.json", images=root / "val2017")
    data = open_data(DataConfig(train=paths))
    assert list(data.splits) == ["train"]
    with pytest.raises(UserError, match=r"data\.path is .* but data\.train is also set; keep one"):
        open_data(DataConfig(path=str(root), train=paths))
    with pytest.raises(UserError, match=r"data\.train\.images: .*nowhere is not a folder"):
        open_data(DataConfig(train=SplitPaths(annotations=paths.annotations, images=root / "nowhere")))


def annotations_of(*boxes):
    """Annotations of image 10 and category 3 with these boxes."""
    return [{"id": i, "image_id": 10, "category_id": 3, "bbox": list(box)} for i, box in enumerate(boxes)]


def test_boxes_of_zero_size_and_boxes_outside_are_repaired_and_noted_in_one_line(coco_set):
    annotations = annotations_of([5, 5, 0, 4], [-3, -2, 10, 10], [30, 10, 20, 20], [0, 0, 40.3, 20])
    data = opened(coco_set(annotations=annotations))
    assert data.split("train").records[0].boxes.tolist() == [[0, 0, 7, 8], [30, 10, 40, 20], [0, 0, 40, 20]]
    (note,) = [note for note in data.notes if note.startswith("repaired")]
    assert note == "repaired: 2 boxes clipped to the image (1.png x2); 1 box of zero size removed (1.png)"


BAD_ANNOTATIONS = {
    "box of text": (
        annotations_of(["a", 2, 3, 4]),
        r"instances_train2017.json: annotations\[0\] \(1.png\): bbox is \['a', 2, 3, 4\]; "
        r"write \[x, y, width, height\] with four finite numbers",
    ),
    "NaN": (annotations_of([float("nan"), 2, 3, 4]), r"bbox is \[nan, 2, 3, 4\]"),
    "three numbers": (annotations_of([1, 2, 3]), r"bbox is \[1, 2, 3\]"),
    "no box": ([{"image_id": 10, "category_id": 3}], "bbox is None"),
    "negative width": (
        annotations_of([9, 2, -3, 4]),
        r"instances_train2017.json: annotations\[0\] \(1.png\): bbox ends before it begins \(9, 2, 6, 6\); correct",
    ),
    "completely outside": (
        annotations_of([50, 2, 3, 4]),
        r"instances_train2017.json: annotations\[0\] \(1.png\): bbox \(50, 2, 53, 6\) is completely outside the 40x20",
    ),
    "unknown category": (
        [{"image_id": 10, "category_id": 4, "bbox": [1, 1, 2, 2]}],
        r"annotations\[0\] \(1.png\): category_id 4 is not in 'categories'; correct it or add the category",
    ),
    "category of text": ([{"image_id": 10, "category_id": "x", "bbox": [1, 1, 2, 2]}], "category_id 'x'"),
    "unknown image": (
        [{"image_id": 11, "category_id": 3, "bbox": [1, 1, 2, 2]}],
        r"annotations\[0\]: image_id 11 is not the id of an image; correct it or remove the annotation",
    ),
    "wrong crowd": (
        [{"image_id": 10, "category_id": 3, "bbox": [1, 1, 2, 2], "iscrowd": "yes"}],
        "iscrowd is 'yes'; write 0 or 1",
    ),
}


@pytest.mark.parametrize(("annotations", "message"), BAD_ANNOTATIONS.values(), ids=BAD_ANNOTATIONS)
def test_a_bad_annotation_stops_the_run_or_is_skipped_and_named(coco_set, annotations, message):
    root = coco_set(annotations=[*annotations, *annotations_of([1, 1, 2, 2])])
    with pytest.raises(UserError, match=message) as caught:
        opened(root)
    assert "\n" not in str(caught.value)
    assert "--on-bad-record skip" in str(caught.value)
    data = opened(root, on_bad_record="skip")
    assert len(data.split("train").records[0].boxes) == 1
    assert any(note.startswith("skipped: 1 record (") for note in data.notes)


BAD_IMAGES = {
    "missing": (
        [{"id": 20, "file_name": "gone.png"}],
        r"train2017/gone.png: the image file does not exist \(the only one missing of 2 images in "
        r"instances_train2017.json\); restore the file",
    ),
    "id of another type": (
        [{"id": 2.5, "file_name": "2.png"}],
        r"instances_train2017.json: images\[1\]: id 2.5 is neither a whole number nor a text; give each image its own",
    ),
    "no name": ([{"id": 20}], r"images\[1\]: file_name is None; write the name"),
    "id twice": ([{"id": 10, "file_name": "2.png"}], r"images\[1\]: id 10 is also the id of 1.png; give each image"),
    "other size": (
        [{"id": 20, "file_name": "2.png", "width": 41, "height": 20}],
        r"2.png: width and height in instances_train2017.json are 41x20, but the file has 40x20; correct",
    ),
    "size of text": (
        [{"id": 20, "file_name": "2.png", "width": "wide", "height": 20}],
        r"images\[1\] \(2.png\): width and height are 'wide' and 20; write two numbers",
    ),
}


@pytest.mark.parametrize(("images", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_a_bad_image_entry_stops_the_run_or_is_skipped_and_named(coco_set, images, message):
    root = coco_set(images=[{"id": 10, "file_name": "1.png", "width": 40, "height": 20}, *images])
    with pytest.raises(UserError, match=message):
        opened(root)
    data = opened(root, on_bad_record="skip")
    assert [record.id for record in data.split("train").records] == [10]
    assert len(data.faults.skipped) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": None}, "field 'categories' is missing or not a list"),
        ({"images": ["1.png"]}, "field 'images' has entries that are not mappings"),
        ({"categories": [{"id": 3, "name": "cow"}]}, r"categories\[1\]: id 3 is 'cat', but 'cow' in"),
        ({"categories": [{"id": None, "name": "cat"}]}, r"categories\[0\]: id is None; write a whole number or a text"),
        (
            {"categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 8, "name": "dog"}]},
            "several categories with the name 'dog'",
        ),
    ],
)
def test_a_file_that_is_not_coco_stops_the_run_even_with_skip(coco_set, changes, message):
    root = coco_set(**changes)
    for policy in ("stop", "skip"):
        with pytest.raises(UserError, match=message):
            opened(root, on_bad_record=policy)


def test_broken_json_and_two_files_for_one_split_are_refused(coco_set):
    root = coco_set()
    (root / "annotations/instances_train2014.json").write_text("{}")
    with pytest.raises(UserError, match=r"instances_train2014\.json also belongs to split 'train'"):
        opened(root)
    (root / "annotations/instances_train2014.json").unlink()
    (root / "annotations/instances_train2017.json").write_text("{")
    with pytest.raises(UserError, match=r"instances_train2017.json: the file is not JSON"):
        opened(root)


def test_images_that_are_in_no_folder_are_refused(coco_set):
    root = coco_set()
    (root / "train2017").rename(root / "annotations/elsewhere")
    with pytest.raises(UserError, match=r"looked for 1.png in .*train2017.*give explicit paths"):
        opened(root)


def test_a_truncated_image_is_reported_by_the_loader_or_skipped(coco_set):
    root = coco_set()
    noise = Image.effect_noise((40, 20), 80)
    noise.convert("RGB").save(root / "train2017/2.png")
    content = (root / "train2017/2.png").read_bytes()
    (root / "train2017/2.png").write_bytes(content[: len(content) // 2])
    data = opened(root)  # the header is readable
    for workers in (0, 1):
        loader = EvalLoader(data.split("train"), DataConfig(), batch_size=2, workers=workers)
        with pytest.raises(UserError, match=r"\A.*2.png: can't decode the image [^\n]*skip\Z"):
            next(iter(loader))
    skipping = opened(root, on_bad_record="skip")
    assert [record.name for record in skipping.split("train").records] == ["1.png"]
    assert "2.png" in skipping.notes[-1]
