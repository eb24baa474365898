"""Splits: which one is used for training and evaluation, and how a part of one is taken."""

import numpy as np
import pytest

from detdistill.data import open_data
from detdistill.errors import UserError
from detdistill.recipe import DataConfig


def test_the_evaluation_split_is_never_the_training_split_unless_it_is_named(voc_set):
    root = voc_set()
    data = open_data(DataConfig(path=str(root)))
    assert data.training_split(DataConfig()).name == "train"
    assert data.training_split(DataConfig(train_split="trainval")).name == "trainval"
    assert data.evaluation_split(DataConfig()).name == "val"
    assert data.evaluation_split(DataConfig(eval_split="train")).name == "train"
    with pytest.raises(UserError, match="no split 'tranval'; did you mean 'trainval'"):
        data.split("tranval")
    (root / "ImageSets/Main/val.txt").unlink()
    with pytest.raises(UserError, match=r"neither a test nor a val split; choose one of train, trainval with"):
        open_data(DataConfig(path=str(root))).evaluation_split(DataConfig())


def test_a_split_without_objects_is_refused(coco_set):
    data = open_data(DataConfig(path=str(coco_set(annotations=[]))))
    with pytest.raises(UserError, match="split 'train': no image has an object"):
        data.training_split(DataConfig())


def test_take_spreads_over_the_split():
    split = open_data(DataConfig(path="shapes:12")).split("train")
    assert [record.id for record in split.take(4).records] == [1, 4, 7, 10]
    assert len(split.take(99)) == 12
    truth = split.take(2).ground_truth()
    assert len(truth["images"]) == 2
    assert {annotation["image_id"] for annotation in truth["annotations"]} <= {1, 7}
    assert np.isfinite([annotation["area"] for annotation in truth["annotations"]]).all()
