"""Duplicates within a split, and leaks between splits."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detdistill.inspection.duplicates import Pictures, duplicates, twins
from detdistill.inspection.findings import Finding
from detdistill.inspection.pixels import Glance, glances

from .made import data_of, picture, record


def found(
    root: Path, splits: Mapping[str, Mapping[str, Image.Image | Path]], training: str = "train"
) -> dict[str, Finding]:
    """The findings about these files, by kind. A path is a copy of that file."""
    records = {}
    for split, files in splits.items():
        (root / split).mkdir()
        records[split] = []
        for name, content in files.items():
            path = root / split / name
            if isinstance(content, Path):
                path.write_bytes((root / content).read_bytes())
            else:
                content.save(path)
            records[split].append(record(name, path=path))
    data = data_of(records)
    everything = [each for split in data.splits.values() for each in split.records]
    looks = dict(zip(everything, glances(everything), strict=True))
    return {finding.kind: finding for finding in duplicates(data.splits, looks, training)}


def test_different_pictures_give_no_finding(tmp_path: Path) -> None:
    train = {f"{seed}.png": picture(seed) for seed in range(20)}
    assert found(tmp_path, {"train": train, "test": {f"{seed}.png": picture(seed) for seed in range(20, 30)}}) == {}


def test_a_copied_file_in_the_test_split_is_a_leak(tmp_path: Path) -> None:
    test = {"b.png": picture(2), "copy.png": Path("train/a.png")}
    findings = found(tmp_path, {"train": {"a.png": picture(1)}, "test": test})
    assert set(findings) == {"leak"}
    assert findings["leak"].level == "problem"
    assert findings["leak"].text == "1 image of test is also in train"
    assert findings["leak"].examples == ("copy.png like a.png",)
    assert "metrics on test" in findings["leak"].remedy


def test_a_file_that_two_splits_list_is_a_leak(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    shared = record("a.png", path=tmp_path / "a.png")
    data = data_of({"train": [shared], "test": [shared]})
    (finding,) = duplicates(data.splits, {}, "train")
    assert (finding.kind, finding.examples) == ("leak", ("a.png",))


def test_a_leak_between_two_splits_that_are_not_trained_on_is_a_warning(tmp_path: Path) -> None:
    splits = {"train": {"a.png": picture(1)}, "val": {"b.png": picture(2)}, "test": {"b.png": Path("val/b.png")}}
    assert found(tmp_path, splits)["leak"].level == "warning"


def test_a_smaller_recompressed_and_darker_copy_is_nearly_identical(tmp_path: Path) -> None:
    worse = picture(1, 400, 300).resize((200, 150)).point(lambda value: value * 0.8)
    findings = found(
        tmp_path, {"train": {"a.png": picture(1, 400, 300)}, "test": {"b.jpg": worse, "c.png": picture(2)}}
    )
    assert set(findings) == {"near-leak"}
    assert findings["near-leak"].text == "1 image of test is nearly identical to an image of train"
    assert findings["near-leak"].examples == ("b.jpg like a.png",)


def test_copies_within_a_split(tmp_path: Path) -> None:
    files = {"a.png": picture(1), "b.png": Path("train/a.png"), "c.jpg": picture(1), "d.png": picture(2)}
    findings = found(tmp_path, {"train": files})
    assert set(findings) == {"duplicates", "near-duplicates"}
    assert findings["duplicates"].text == "1 image of train has the same pixels as another image of train"
    assert findings["near-duplicates"].examples == ("c.jpg like a.png",)  # b.png is not compared again


def test_the_same_name_in_two_splits_is_a_note(tmp_path: Path) -> None:
    findings = found(tmp_path, {"train": {"a.png": picture(1)}, "test": {"A.png": picture(2)}})
    assert {kind: finding.level for kind, finding in findings.items()} == {"same-name": "note"}


def test_copies_that_roboflow_made_of_one_source_are_a_leak(tmp_path: Path) -> None:
    train = {"cell_jpg.rf.0a1B.jpg": picture(1)}
    findings = found(tmp_path, {"train": train, "test": {"cell_jpg.rf.9f8e.jpg": picture(2)}})
    assert {kind: finding.level for kind, finding in findings.items()} == {"copies-in-two-splits": "problem"}


def test_images_that_were_not_looked_at_are_compared_by_their_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(1).save(tmp_path / name)
    one, two = (record(name, path=tmp_path / name) for name in ("a.png", "b.png"))
    (finding,) = duplicates(data_of({"train": [one], "test": [two]}).splits, {}, "train")
    assert finding.kind == "leak"


def flat(value: int) -> Glance:
    return Glance(np.full((32, 32), value, dtype=np.uint8), 0)


def test_flat_pictures_are_alike_if_they_are_equally_bright() -> None:
    pictures = Pictures.of([flat(100), flat(160), flat(101)])
    assert twins(pictures).tolist() == [-1, -1, 0]


def test_pictures_with_the_same_hash_are_compared_by_their_pixels() -> None:
    first, second = (np.asarray(picture(seed).convert("L").resize((32, 32))) for seed in (1, 2))
    pictures = Pictures.of([Glance(first, 0), Glance(second, 0), Glance(first // 2 + 20, 3)])
    assert twins(pictures).tolist() == [-1, -1, 0]


@pytest.mark.parametrize(("bits", "twin"), [(2**10 - 1, 0), (2**11 - 1, -1)])
def test_hashes_may_differ_in_ten_bits(bits: int, twin: int) -> None:
    small = np.asarray(picture(1).convert("L").resize((32, 32)))
    assert twins(Pictures.of([Glance(small, bits)]), Pictures.of([Glance(small, 0)])).tolist() == [twin]


def test_the_best_of_many_candidates_is_found() -> None:
    smalls = [np.asarray(picture(seed).convert("L").resize((32, 32))) for seed in range(30)]
    others = Pictures.of([Glance(small, 1) for small in smalls[:29]] + [Glance(smalls[29], 0)])
    assert twins(Pictures.of([Glance(smalls[29], 0)]), others).tolist() == [29]  # its hash is nearest
