import json

import numpy as np
import pytest
from PIL import Image

from detdistill.data import Faults, open_data, read_images
from detdistill.data.images import TURNS, look
from detdistill.errors import UserError
from detdistill.recipe import DataConfig


def test_a_folder_in_no_layout_says_what_was_looked_for(tmp_path):
    for path, message in (
        (tmp_path, "looked for annotations/instances_.*JPEGImages.*data.yaml"),
        (tmp_path / "x", "no such folder"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            open_data(DataConfig(path=str(path)))
        assert str(path) in str(caught.value)
    with pytest.raises(UserError, match="no data: give a folder"):
        open_data(DataConfig())


def test_a_folder_in_two_layouts_is_told(coco_set, yolo_set):
    coco_set()
    data = open_data(DataConfig(path=str(yolo_set())))
    assert data.layout == "coco"
    assert data.notes[1] == "the folder also has a YOLO layout, which is not read"


def test_the_split_to_measure_on_is_never_the_training_split_unless_named(voc_set, coco_set):
    root = voc_set()
    data = open_data(DataConfig(path=str(root)))
    assert data.training_split(DataConfig()).name == "train"
    assert data.training_split(DataConfig(train_split="trainval")).name == "trainval"
    assert data.evaluation_split(DataConfig()).name == "val"
    assert data.evaluation_split(DataConfig(eval_split="train")).name == "train"
    with pytest.raises(UserError, match="no split 'tranval'; did you mean 'trainval'"):
        data.split("tranval")
    (root / "ImageSets/Main/val.txt").unlink()
    with pytest.raises(UserError, match=r"neither a test nor a val split.*train, trainval"):
        open_data(DataConfig(path=str(root))).evaluation_split(DataConfig())


def test_a_split_without_objects_or_images_is_refused(coco_set):
    data = open_data(DataConfig(path=str(coco_set(annotations=[]))))
    with pytest.raises(UserError, match="'train': 2 images without one object"):
        data.training_split(DataConfig())
    with pytest.raises(UserError, match="split 'train' has no image"):
        open_data(DataConfig(path=str(coco_set(images=[], annotations=[]))))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_rotation_is_undone(tmp_path, picture, turn, suffix):
    path = picture(tmp_path / f"a.{suffix}", 40, 20, turn=turn)  # dark at the left, as stored
    (record,) = read_images([path], DataConfig())
    assert (record.height, record.width) == ((40, 20) if turn >= 5 else (20, 40))
    pixels = np.asarray(record.image().convert("L")).astype(int)
    dark = {
        1: np.s_[:, :16],
        2: np.s_[:, -16:],
        3: np.s_[:, -16:],
        4: np.s_[:, :16],
    }  # where the left side of the file belongs
    dark |= {5: np.s_[:16], 6: np.s_[:16], 7: np.s_[-16:], 8: np.s_[-16:]}
    assert pixels.shape == (record.height, record.width)
    assert pixels[dark[turn]].max() < 60
    assert pixels.mean() > 90


def test_annotations_in_the_frame_of_the_stored_image_keep_it(coco_set, picture):
    root = coco_set()
    picture(root / "train2017/1.png", 20, 40, turn=6)  # upright 40 x 20, as declared
    picture(root / "train2017/2.png", 40, 20, turn=6)  # stored 40 x 20, as declared
    data = open_data(DataConfig(path=str(root)))
    assert [(record.height, record.width) for record in data.split("train").records] == [(20, 40)] * 2
    assert [record.image().size for record in data.split("train").records] == [(40, 20)] * 2
    assert data.notes[-1].startswith("mended: 1 image with an EXIF rotation left as stored")
    assert "(2.png)" in data.notes[-1]


def test_looking_at_a_file_decodes_nothing_unless_asked(tmp_path):
    Image.effect_noise((64, 64), 80).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:200])
    assert look(tmp_path / "a.png").stored == (64, 64)
    assert "can't read the image" in look(tmp_path / "a.png", decode=True)
    assert set(TURNS) == set(range(2, 9))


def test_images_that_cannot_be_used(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.new("L", (8, 4)).save(tmp_path / "grey.png")
    with pytest.raises(UserError, match=r"a.jpg: can't read the image"):
        read_images([tmp_path], DataConfig())
    with pytest.raises(UserError, match=r"deep.png: pixels of mode I;16 have more than 8 bits"):
        read_images([tmp_path / "deep.png"], DataConfig())
    (grey,) = read_images([tmp_path], DataConfig(on_bad_record="skip"))
    assert (grey.name, grey.image().mode, grey.image().size) == ("grey.png", "RGB", (8, 4))


def test_read_images_of_folders_and_files(tmp_path, picture):
    for name in ("b.png", "a.jpg", "deep/c.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    records = read_images([str(tmp_path), tmp_path / "b.png"], DataConfig())
    assert [record.name for record in records] == ["a.jpg", "b.png", "c.png", "b.png"]
    assert [record.id for record in records] == [1, 2, 3, 4]
    assert records[2].path == tmp_path / "deep/c.png"
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "empty", "no image in this folder"),
        (tmp_path / "z.png", "no such file or folder"),
    ):
        with pytest.raises(UserError, match=message):
            read_images([path], DataConfig())


def test_a_note_names_five_and_counts_the_others():
    faults = Faults("skip")
    for index in range(7):
        faults.bad(f"/data/{index}.png", "broken", "mend it")
    assert faults.notes() == [
        "skipped: 7 records (0.png, 1.png, 2.png, 3.png, 4.png and 2 more); the first: /data/0.png: broken"
    ]


def test_every_fault_is_logged_by_name(coco_set, caplog):
    caplog.set_level("INFO", logger="detdistill.data")
    box = {"image_id": 10, "category_id": 3, "bbox": [5, 5, 0, 4]}
    root = coco_set(annotations=[box, box | {"bbox": [1]}, box | {"bbox": [1, 1, 2, 2]}])
    open_data(DataConfig(path=str(root), on_bad_record="skip"))
    assert [record.message.split(":")[0].rsplit("/", 1)[-1] for record in caplog.records] == [
        "1.png",
        "instances_train2017.json",
    ]
    assert json.loads((root / "annotations/instances_train2017.json").read_text())["annotations"][0] == box
