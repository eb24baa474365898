"""Recognition of the layout of a data set, and reading of plain images."""

import pytest

from detdistill.data import open_data, read_images
from detdistill.errors import UserError
from detdistill.recipe import DataConfig


def test_data_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder or file; give a folder or file of a data set") as caught:
        open_data(DataConfig(path=str(tmp_path / "x")))
    assert str(tmp_path / "x") in str(caught.value)
    with pytest.raises(UserError, match="no data set is given; give a folder"):
        open_data(DataConfig())


def test_a_second_layout_in_a_folder_is_noted(coco_set, yolo_set):
    coco_set()
    data = open_data(DataConfig(path=str(yolo_set())))
    assert data.layout == "coco"
    assert data.notes[1] == "the folder also has a YOLO layout, which is not read"


def test_a_split_without_images_is_told_and_refused_if_it_is_needed(coco_set):
    data = open_data(DataConfig(path=str(coco_set(images=[], annotations=[]))))
    assert "split 'train' has no readable image and is left out" in data.notes
    with pytest.raises(UserError, match="split 'train' has no readable image; correct or remove the split"):
        data.training_split(DataConfig())


def test_a_data_set_inside_other_folders_is_found(coco_set, tmp_path):
    coco_set()
    (tmp_path / ".cache").mkdir()
    outer = tmp_path.rename(tmp_path.with_name("inner"))
    nested = tmp_path / "download" / "set"
    nested.parent.mkdir(parents=True)
    outer.rename(nested)
    assert open_data(DataConfig(path=str(tmp_path))).notes[1] == "the data set is in download/set"


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
