"""Recognition of the layout of a data set, and reading of plain images."""

import pytest

from detdistill.data import open_data
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
