"""Recognition of the layout of a data set, and reading of plain images."""

import pytest

from detdistill.data import open_data, read_images
from detdistill.errors import UserError
from detdistill.recipe import DataConfig


def test_a_folder_without_a_known_layout_lists_what_was_looked_for(tmp_path):
    for path, message in (
        (tmp_path, "looked for annotations/instances_.*JPEGImages.*data.yaml"),
        (tmp_path / "x", "no such folder"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            open_data(DataConfig(path=str(path)))
        assert str(path) in str(caught.value)
    with pytest.raises(UserError, match="no data set is given; give a folder"):
        open_data(DataConfig())


def test_a_second_layout_in_a_folder_is_noted(coco_set, yolo_set):
    coco_set()
    data = open_data(DataConfig(path=str(yolo_set())))
    assert data.layout == "coco"
    assert data.notes[1] == "the folder also has a YOLO layout, which is not read"


def test_a_split_without_images_is_refused(coco_set):
    with pytest.raises(UserError, match="split 'train' has no readable image"):
        open_data(DataConfig(path=str(coco_set(images=[], annotations=[]))))


def test_images_of_folders_and_files_are_read(tmp_path, write_image):
    for name in ("b.png", "a.jpg", "deep/c.png"):
        write_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    records = read_images([str(tmp_path), tmp_path / "b.png"], DataConfig())
    assert [record.name for record in records] == ["a.jpg", "b.png", "c.png", "b.png"]
    assert [record.id for record in records] == [1, 2, 3, 4]
    assert records[2].path == tmp_path / "deep/c.png"
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "empty", "the folder has no image"),
        (tmp_path / "z.png", "no such file or folder"),
    ):
        with pytest.raises(UserError, match=message):
            read_images([path], DataConfig())
