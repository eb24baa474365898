"""The images that are drawn as samples."""

from itertools import pairwise
from pathlib import Path

from PIL import Image

from detdistill.inspection.samples import choose, draw_samples

from .made import CLASSES, Box, data_of, record

CAT: Box = (0, 50, 50, 150, 150)
DOG: Box = (1, 20, 20, 180, 180)


def test_all_splits_and_the_rarest_class_are_shown() -> None:
    train = [record(f"{index}", [CAT]) for index in range(30)] + [record("dog", [CAT, DOG])]
    splits = data_of({"train": train, "test": [record("t", [CAT])], "val": [record("empty")]}).splits
    chosen = choose(splits, [each for split in splits.values() for each in split.records], 4)
    assert [split for split, _ in chosen] == ["train", "test", "train", "train"]
    names = [each.name for _, each in chosen]
    assert "dog" in names[:3]  # once a cat was shown, the dog is shown less
    assert len(set(names)) == 4
    assert names == [each.name for _, each in choose(splits, [*train, *splits["test"].records], 4)]


def test_images_are_spread_over_the_split() -> None:
    train = [record(f"{index}", [CAT]) for index in range(100)]
    chosen = choose(data_of({"train": train}).splits, train)
    assert len(chosen) == 10
    positions = sorted(int(each.name) for _, each in chosen)
    assert max(after - before for before, after in pairwise(positions)) < 20


def test_unreadable_images_are_not_chosen() -> None:
    train = [record(f"{index}", [CAT]) for index in range(3)]
    assert {each for _, each in choose(data_of({"train": train}).splits, train[1:])} == set(train[1:])


def test_samples_are_drawn_with_their_boxes_and_on_one_sheet(tmp_path: Path) -> None:
    chosen = [("train", record("a/b.png", [CAT], (320, 320))), ("test", record("c.png", [DOG], (160, 320)))] * 3
    files = draw_samples(chosen, CLASSES, tmp_path)
    assert [path.name for path in files[:2]] == ["01-train-b.jpg", "02-test-c.jpg"]
    assert files[-1] == tmp_path / "samples.jpg"
    assert sorted(tmp_path.iterdir()) == sorted(files)
    with Image.open(files[0]) as drawn:
        assert drawn.size == (640, 640)
        red, green, blue = drawn.getpixel((200, 300))  # on the lower side of the box; cats are green, the image is gray
        assert min(green - red, green - blue) > 60
    with Image.open(files[-1]) as sheet:
        assert sheet.size == (5 * 320, 2 * 320)


def test_nothing_is_drawn_without_images(tmp_path: Path) -> None:
    assert draw_samples([], CLASSES, tmp_path) == []
    assert list(tmp_path.iterdir()) == []
