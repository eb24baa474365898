"""The inspection of data sets that are made on disk."""

import json
from pathlib import Path

import pytest

from detdistill.data import open_data
from detdistill.inspection import data as inspection_data
from detdistill.inspection.data import Inspection, inspect
from detdistill.recipe import DataConfig

from .made import clean_files, picture, write_coco


def inspected(root: Path, out: Path | None = None) -> Inspection:
    """The inspection at 96 x 128 pixels, for three strides."""
    config = DataConfig(path=str(root), image_size=(96, 128), on_bad_record="skip")
    data = open_data(config, decode=False)
    return inspect(data, config, strides=(8, 16, 32), assigners=("atss", "fcos"), batch_size=4, out=out)


def test_a_clean_data_set_gives_no_finding(tmp_path: Path) -> None:
    report = inspected(write_coco(tmp_path, {"train": clean_files(0), "test": clean_files(50)}))
    assert report.findings == ()
    assert report.verdict == "no findings"
    assert report.compared == ("train", "test")
    assert report.classes == {"cat": {"test": 10, "train": 10}, "dog": {"test": 10, "train": 10}}
    assert (report.total, report.looked_at, report.boxes.boxes) == (20, 20, 40)


def test_what_is_planted_is_found(tmp_path: Path) -> None:
    train, test = clean_files(0), clean_files(50)
    damaged = b"\x89PNG\r\n\x1a\n"
    train |= {
        "broken.png": (damaged, [(0, 5, 5, 45, 45)]),
        "outside.png": (picture(90), [(0, 5, 5, 45, 45), (1, 100, 50, 140, 80)]),  # the picture is 120 pixels wide
        "thin.png": (picture(91), [(0, 5, 5, 45, 45), (1, 10, 50, 11, 80)]),
    }
    test["copy.png"] = train["3.png"]
    root = write_coco(tmp_path / "data", {"train": train, "test": test})
    content = (root / "train" / "4.png").read_bytes()
    (root / "train" / "4.png").write_bytes(content[: len(content) * 3 // 4])  # its header is readable
    report = inspected(root, tmp_path / "out")
    kinds = [finding.kind for finding in report.findings]
    assert sorted(kinds) == ["leak", "repaired", "thin", "unreadable-images", "unreadable-records"]
    found = {finding.kind: finding for finding in report.findings}
    assert found["leak"].examples == ("copy.png like 3.png",)
    assert found["unreadable-images"].examples[0].startswith("4.png (train): ")
    assert found["unreadable-records"].examples[0].startswith("broken.png: ")
    assert found["repaired"].text == "1 box clipped to the image"
    assert found["repaired"].examples == ("outside.png",)
    assert report.verdict.startswith("5 findings (3 problems, 2 warnings); the worst: ")
    assert len(report.samples) == 11
    assert all(Path(path).is_file() for path in report.samples)


def test_all_numbers_can_be_written_as_json(tmp_path: Path) -> None:
    report = inspected(write_coco(tmp_path, {"train": clean_files(0, 3)}))
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["splits"]["train"] == {"images": 3, "objects": 6, "crowds": 0, "empty": 0, "parts": []}
    assert {finding["kind"] for finding in content["findings"]} == {"no-test-split", "rare-class"}
    assert content["verdict"] == report.verdict


def test_of_a_large_data_set_some_pixels_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection_data, "LOOKED_AT", 4)
    report = inspected(write_coco(tmp_path, {"train": clean_files(0), "test": clean_files(50)}))
    assert (report.total, report.looked_at) == (20, 4)
    assert report.boxes.boxes == 40


def test_a_data_set_without_objects_is_inspected(tmp_path: Path) -> None:
    report = inspected(write_coco(tmp_path, {"train": {"a.png": (picture(0), [])}}), tmp_path / "out")
    assert report.boxes.boxes == 0
    assert {"no-objects", "missing-class"} <= {finding.kind for finding in report.findings}
    assert report.samples == ()
