"""Image files: EXIF rotation, headers, and files that can't be used."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detdistill.data import open_data, read_images
from detdistill.data.faults import Faults
from detdistill.data.images import UNDO, Header, fitting_frames, read_header, resolve_image
from detdistill.errors import UserError
from detdistill.recipe import DataConfig


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_the_exif_rotation_is_undone(tmp_path, write_image, orientation, suffix):
    path = write_image(tmp_path / f"a.{suffix}", 40, 20, orientation=orientation)  # the left half as stored is dark
    (record,) = read_images([path], DataConfig())
    assert (record.height, record.width) == ((40, 20) if orientation >= 5 else (20, 40))
    pixels = np.asarray(record.image().convert("L")).astype(int)
    dark = {  # the region of the upright image that comes from the left half as stored
        1: np.s_[:, :16],
        2: np.s_[:, -16:],
        3: np.s_[:, -16:],
        4: np.s_[:, :16],
        5: np.s_[:16],
        6: np.s_[:16],
        7: np.s_[-16:],
        8: np.s_[-16:],
    }
    assert pixels.shape == (record.height, record.width)
    assert pixels[dark[orientation]].max() < 60
    assert pixels.mean() > 90


def test_an_image_is_not_rotated_if_the_annotations_have_the_stored_size(coco_set, write_image):
    root = coco_set()
    write_image(root / "train2017/1.png", 20, 40, orientation=6)  # 40 x 20 upright, as declared
    write_image(root / "train2017/2.png", 40, 20, orientation=6)  # 40 x 20 as stored, as declared
    data = open_data(DataConfig(path=str(root)))
    assert [(record.height, record.width) for record in data.split("train").records] == [(20, 40)] * 2
    assert [record.image().size for record in data.split("train").records] == [(40, 20)] * 2
    assert data.notes[-1].startswith("repaired: 1 image kept without its EXIF rotation")
    assert "(2.png)" in data.notes[-1]


def test_reading_a_header_decodes_pixels_only_on_request(tmp_path):
    Image.effect_noise((64, 64), 80).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:200])
    assert read_header(tmp_path / "a.png").stored == (64, 64)
    assert "can't read the image" in read_header(tmp_path / "a.png", decode=True)
    assert set(UNDO) == set(range(2, 9))


def test_images_that_cannot_be_used_are_refused_or_skipped(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.new("L", (8, 4)).save(tmp_path / "gray.png")
    with pytest.raises(UserError, match=r"a.jpg: can't read the image"):
        read_images([tmp_path], DataConfig())
    with pytest.raises(UserError, match=r"deep.png: the pixels of mode I;16 have more than 8 bits per channel; "):
        read_images([tmp_path / "deep.png"], DataConfig())
    (gray,) = read_images([tmp_path], DataConfig(on_bad_record="skip"))
    assert (gray.name, gray.image().mode, gray.image().size) == ("gray.png", "RGB", (8, 4))


def test_skipping_decodes_every_image_unless_told_otherwise(coco_set):
    root = coco_set()
    path = root / "train2017" / "1.png"
    path.write_bytes(path.read_bytes()[:-30])  # the header is intact
    config = DataConfig(path=str(root), on_bad_record="skip")
    assert [len(open_data(config, decode=decode).split("train")) for decode in (True, False)] == [1, 2]


TURNED = Header((20, 40), 6)  # 40 x 20 as stored, 20 x 40 upright


@pytest.mark.parametrize(
    ("box", "frames"),
    [
        ([0, 0, 20, 40], ("upright",)),
        ([0, 0, 40, 20], ("stored",)),
        ([0, 0, 21, 21], ("upright", "stored")),  # one pixel outside of both
        ([0, 0, 40, 40], ()),
    ],
)
def test_the_frames_that_contain_all_boxes(box, frames):
    assert fitting_frames(TURNED, [[1, 1, 2, 2], box]) == frames
    assert fitting_frames(TURNED, []) == ("upright", "stored")


@pytest.mark.parametrize(
    ("declared", "boxes", "usual", "size", "doubts"),
    [
        (None, (), None, (40, 20), 0),
        ((20, 40), (), None, (20, 40), 0),
        ((-1, 0), [[0, 0, 40, 20]], None, (20, 40), 0),
        ((20, 40), [[0, 0, 20, 40]], "stored", (40, 20), 0),
        ((20, 40), [[0, 0, 40, 40]], "upright", (20, 40), 0),  # no frame contains it: the declared size decides
        ((20, 40), [[0, 0, 9, 9]], None, (20, 40), 1),
        ((20, 40), [[0, 0, 9, 9]], "stored", (20, 40), 0),
        ((20, 40), [[0, 0, 9, 9]], "upright", (40, 20), 1),
    ],
)
def test_the_frame_of_a_rotated_image(declared, boxes, usual, size, doubts):
    faults = Faults()
    image, found = resolve_image(Path("a.jpg"), TURNED, declared, faults, "x.json", boxes, usual)
    assert found == size
    assert image.orientation == (6 if size == (40, 20) else 1)
    assert len(faults.doubtful) == doubts


def test_a_rotation_that_changes_no_side_is_undone():
    for header in (Header((20, 40), 3), Header((30, 30), 6)):
        image, size = resolve_image(Path("a.jpg"), header, header.stored, Faults(), "x.json", [[0, 0, 9, 9]])
        assert (image.orientation, size) == (header.orientation, header.stored)
