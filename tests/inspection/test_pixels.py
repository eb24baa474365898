"""Images at a glance."""

from pathlib import Path

import numpy as np
from PIL import Image

from detdistill.data.images import ImageFile
from detdistill.inspection.pixels import Glance, difference_hash, equal_files, glance, glances

from .made import picture, record

ONES = 2**64 - 1


def test_the_hash_tells_where_the_picture_becomes_brighter() -> None:
    ramp = Image.fromarray(np.tile(np.arange(90, dtype=np.uint8), (40, 1)))
    assert difference_hash(ramp) == ONES
    assert difference_hash(ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 0
    half = np.tile(np.arange(90, dtype=np.uint8), (40, 1))
    half[20:] = half[20:, ::-1]
    assert difference_hash(Image.fromarray(half)) == ONES - (2**32 - 1)  # the upper four rows come first


def test_size_and_compression_hardly_change_a_glance(tmp_path: Path) -> None:
    picture(1, 400, 300).save(tmp_path / "a.png")
    picture(1, 400, 300).resize((200, 150)).save(tmp_path / "b.jpg", quality=40)
    first, second = glances([record(name, size=(1, 1), path=tmp_path / name) for name in ("a.png", "b.jpg")])
    assert isinstance(first, Glance) and isinstance(second, Glance)
    assert (first.bits ^ second.bits).bit_count() <= 4
    assert np.abs(first.small.astype(int) - second.small).mean() < 4
    assert (first.bits ^ difference_hash(picture(2).convert("L"))).bit_count() > 10


def test_a_glance_is_upright(tmp_path: Path) -> None:
    upright = picture(3)
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png")
    made = record("a.png", path=tmp_path / "a.png")
    object.__setattr__(made, "source", ImageFile(tmp_path / "a.png", orientation=6))  # a quarter turn clockwise
    look = glance(made)
    assert isinstance(look, Glance)
    assert look.bits == difference_hash(upright.convert("L"))


def test_a_damaged_file_is_described(tmp_path: Path) -> None:
    picture(1, 400, 300).save(tmp_path / "cut.jpg")
    content = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    look = glance(record("cut.jpg", path=tmp_path / "cut.jpg"))
    assert isinstance(look, str) and "truncated" in look


def test_an_image_that_is_in_no_file_is_drawn() -> None:
    look = glance(record("drawn"))
    assert isinstance(look, Glance)
    assert (look.small == 128).all()


def test_files_with_the_same_bytes(tmp_path: Path) -> None:
    for name, content in (("a", b"1234"), ("b", b"1235"), ("c", b"1234"), ("d", b"12345")):
        (tmp_path / name).write_bytes(content)
    paths = [tmp_path / name for name in "abcdx"]  # x does not exist
    assert equal_files([*paths, paths[0]]) == [[tmp_path / "a", tmp_path / "c"]]
