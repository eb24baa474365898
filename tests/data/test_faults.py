"""Notes and log lines about repaired and skipped records."""

import json

from detdistill.data import Faults, open_data
from detdistill.recipe import DataConfig


def test_a_note_names_five_files_and_counts_the_others():
    faults = Faults("skip")
    for index in range(7):
        faults.reject(f"/data/{index}.png", "the file is damaged", "restore it")
    assert faults.notes() == [
        "skipped: 7 records (0.png, 1.png, 2.png, 3.png, 4.png and 2 more); the first: /data/0.png: the file is damaged"
    ]


def test_every_fault_is_logged_with_its_file(coco_set, caplog):
    caplog.set_level("INFO", logger="detdistill.data")
    box = {"image_id": 10, "category_id": 3, "bbox": [5, 5, 0, 4]}
    root = coco_set(annotations=[box, box | {"bbox": [1]}, box | {"bbox": [1, 1, 2, 2]}])
    path = root / "annotations/instances_train2017.json"
    open_data(DataConfig(path=str(root), on_bad_record="skip"))
    assert [record.message for record in caplog.records] == [
        "1.png: annotations[0] (1.png): bbox of zero size removed",
        f"{path}: skipped: annotations[1] (1.png): bbox is [1]",
    ]
    assert json.loads(path.read_text())["annotations"][0] == box  # the file itself is not changed


def test_repairs_are_counted_in_words_with_their_images():
    faults = Faults()
    for image in ("a.png", "a.png", "b.png"):
        faults.repair(image, "zero", "line 1: box")
    faults.repair("c.png", "unrotated", "image")
    (rotated, rotated_images), (zero, zero_images) = faults.repairs()
    assert (zero, zero_images) == ("3 boxes of zero size removed", ["a.png", "a.png", "b.png"])
    assert rotated.startswith("1 image kept without its EXIF rotation") and rotated_images == ["c.png"]
