import contextlib
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from detdistill.data import open_data
from detdistill.errors import UserError
from detdistill.recipe import DataConfig, SplitPaths


def opened(root: Path, **fields):
    return open_data(DataConfig(path=str(root), **fields))


def test_non_contiguous_ids_become_classes_in_the_order_of_ids(coco_set):
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
    assert data.notes == ("data: COCO JSON; images: train 2, val 2; 2 classes",)


def test_ground_truth_is_what_pycocotools_reads(coco_set):
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
    assert evaluation.stats[0] == pytest.approx(1.0)  # the dog is found; the cat is a crowd, which is nobody's miss


def test_roboflow_folders_and_their_heading_category(tmp_path, picture):
    for split in ("train", "valid"):
        picture(tmp_path / split / "a.jpg")
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


def test_explicit_paths(coco_set, tmp_path):
    root = coco_set()
    where = SplitPaths(annotations=root / "annotations/instances_val2017.json", images=root / "val2017")
    data = open_data(DataConfig(train=where))
    assert list(data.splits) == ["train"]
    with pytest.raises(UserError, match=r"data\.path .* and data\.train .* keep one"):
        open_data(DataConfig(path=str(root), train=where))
    with pytest.raises(UserError, match="no folder"):
        open_data(DataConfig(train=SplitPaths(annotations=where.annotations, images=root / "nowhere")))


def boxes(*found):
    return [{"id": i, "image_id": 10, "category_id": 3, "bbox": list(box)} for i, box in enumerate(found)]


def test_zero_and_outside_boxes_are_mended_and_told_in_one_line(coco_set):
    data = opened(coco_set(annotations=boxes([5, 5, 0, 4], [-3, -2, 10, 10], [30, 10, 20, 20], [0, 0, 40.3, 20])))
    assert data.split("train").records[0].boxes.tolist() == [[0, 0, 7, 8], [30, 10, 40, 20], [0, 0, 40, 20]]
    (note,) = [note for note in data.notes if note.startswith("mended")]
    assert (
        note == "mended: 2 boxes reaching out of the image clipped to it (1.png x2); 1 box of zero size dropped (1.png)"
    )


BAD = {
    "box of text": (
        boxes(["1", 2, 3, 4]),
        r"annotations\[0\] \(1.png\): bbox is \['1', 2, 3, 4\]; .*four finite numbers",
    ),
    "NaN": (boxes([float("nan"), 2, 3, 4]), r"bbox is \[nan, 2, 3, 4\]"),
    "three numbers": (boxes([1, 2, 3]), r"bbox is \[1, 2, 3\]"),
    "no box": ([{"image_id": 10, "category_id": 3}], "bbox is None"),
    "negative width": (
        boxes([9, 2, -3, 4]),
        r"1.png: bbox of instances_train2017.json annotations\[0\] ends before it begins",
    ),
    "wholly outside": (boxes([50, 2, 3, 4]), r"1.png: .*lies wholly outside the 40x20 image"),
    "unknown category": (
        [{"image_id": 10, "category_id": 4, "bbox": [1, 1, 2, 2]}],
        "category_id 4 is not in 'categories'",
    ),
    "category of text": ([{"image_id": 10, "category_id": "3", "bbox": [1, 1, 2, 2]}], "category_id '3'"),
    "unknown image": (
        [{"image_id": 11, "category_id": 3, "bbox": [1, 1, 2, 2]}],
        r"annotations\[0\]: image_id 11 is no image's id",
    ),
    "odd crowd": ([{"image_id": 10, "category_id": 3, "bbox": [1, 1, 2, 2], "iscrowd": "yes"}], "iscrowd is 'yes'"),
}


@pytest.mark.parametrize(("annotations", "message"), BAD.values(), ids=BAD)
def test_a_bad_annotation_stops_or_is_skipped_by_name(coco_set, annotations, message):
    root = coco_set(annotations=[*annotations, *boxes([1, 1, 2, 2])])
    with pytest.raises(UserError, match=message) as caught:
        opened(root)
    assert "\n" not in str(caught.value)
    assert "--on-bad-record skip" in str(caught.value)
    data = opened(root, on_bad_record="skip")
    assert len(data.split("train").records[0].boxes) == 1
    assert any(note.startswith("skipped: 1 record (") for note in data.notes)


IMAGES = {
    "missing": ([{"id": 20, "file_name": "gone.png"}], r"gone.png: there is no such image"),
    "id of text": (
        [{"id": "20", "file_name": "2.png"}],
        r"instances_train2017.json: images\[1\]: id '20' is no integer",
    ),
    "no name": ([{"id": 20}], r"images\[1\]: file_name is None"),
    "id twice": ([{"id": 10, "file_name": "2.png"}], r"images\[1\]: id 10 is 1.png's already"),
    "other size": (
        [{"id": 20, "file_name": "2.png", "width": 41, "height": 20}],
        r"2.png: .* say 41x20 but the file has 40x20",
    ),
    "size of text": ([{"id": 20, "file_name": "2.png", "width": "40", "height": 20}], r"2.png: .* say 0x20"),
}


@pytest.mark.parametrize(("images", "message"), IMAGES.values(), ids=IMAGES)
def test_a_bad_image_entry_stops_or_is_skipped_by_name(coco_set, images, message):
    root = coco_set(images=[{"id": 10, "file_name": "1.png", "width": 40, "height": 20}, *images])
    with pytest.raises(UserError, match=message):
        opened(root)
    data = opened(root, on_bad_record="skip")
    assert [record.id for record in data.split("train").records] == [10]
    assert len(data.faults.skipped) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": None}, "'categories' is missing or no list"),
        ({"images": ["1.png"]}, "'images' holds something else"),
        ({"categories": [{"id": 3, "name": "cow"}]}, "category 3 is 'cat' but 'cow' in"),
        ({"categories": [{"id": "3", "name": "cat"}]}, "needs an integer id"),
        (
            {"categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 8, "name": "dog"}]},
            "several categories are called 'dog'",
        ),
    ],
)
def test_a_file_that_is_no_coco_stops_even_with_skip(coco_set, changes, message):
    root = coco_set(**changes)
    for policy in ("stop", "skip"):
        with pytest.raises(UserError, match=message):
            opened(root, on_bad_record=policy)


def test_broken_json_and_two_files_for_one_split(coco_set):
    root = coco_set()
    (root / "annotations/instances_train2014.json").write_text("{}")
    with pytest.raises(UserError, match="there for split 'train' too"):
        opened(root)
    (root / "annotations/instances_train2014.json").unlink()
    (root / "annotations/instances_train2017.json").write_text("{")
    with pytest.raises(UserError, match=r"instances_train2017.json: not JSON"):
        opened(root)


def test_images_nowhere_to_be_found(coco_set):
    root = coco_set()
    (root / "train2017").rename(root / "elsewhere")
    with pytest.raises(UserError, match=r"looked for 1.png in .*train2017.*give explicit paths"):
        opened(root)


def test_a_truncated_image_is_found_by_the_loader_or_when_skipping(coco_set):
    from detdistill.data import EvalLoader

    root = coco_set()
    noise = Image.effect_noise((40, 20), 80)
    noise.convert("RGB").save(root / "train2017/2.png")
    whole = (root / "train2017/2.png").read_bytes()
    (root / "train2017/2.png").write_bytes(whole[: len(whole) // 2])
    data = opened(root)  # the header is sound
    for workers in (0, 1):
        loader = EvalLoader(data.split("train"), DataConfig(), batch_size=2, workers=workers)
        with pytest.raises(UserError, match=r"\A.*2.png: can't decode the image [^\n]*skip\Z"):
            next(iter(loader))
    left = opened(root, on_bad_record="skip")
    assert [record.name for record in left.split("train").records] == ["1.png"]
    assert "2.png" in left.notes[-1]
