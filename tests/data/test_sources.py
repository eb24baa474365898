"""find_sources and read_images: which files an input names."""

from pathlib import Path

import pytest
from PIL import Image

from detdistill.data import read_images
from detdistill.data.sources import decoded, find_sources
from detdistill.data.video import Camera, VideoFile
from detdistill.errors import UserError
from detdistill.recipe import DataConfig


def touch(folder: Path, *names: str) -> None:
    """Make empty files."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_files_folders_patterns_and_cameras(tmp_path: Path) -> None:
    touch(tmp_path, "a/2.jpg", "a/1.PNG", "a/deep/3.mov", "a/.hidden.jpg", "a/notes.txt", "b.mp4", "odd.picture")
    folder = find_sources([tmp_path / "a", 0, "1", 0])
    assert folder.images == (tmp_path / "a/1.PNG", tmp_path / "a/2.jpg")
    assert folder.videos == (VideoFile(tmp_path / "a/deep/3.mov"), Camera(0), Camera(1))
    assert folder.files == (*folder.images, tmp_path / "a/deep/3.mov")
    assert find_sources([f"{tmp_path}/a/*.jpg"]).images == (tmp_path / "a/2.jpg",)
    assert find_sources([f"{tmp_path}/**/*.m*"]).videos == (
        VideoFile(tmp_path / "a/deep/3.mov"),
        VideoFile(tmp_path / "b.mp4"),
    )
    assert find_sources([tmp_path / "odd.picture"]).images == (tmp_path / "odd.picture",)  # decided by its content


def test_a_name_that_exists_is_no_pattern_and_no_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "a[1].jpg", "0")
    found = find_sources(["a[1].jpg", "0"])
    assert found.images == (Path("a[1].jpg"), Path("0"))
    assert not found.videos


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "a/2.jpg")
    found = find_sources([tmp_path / "a/2.jpg", tmp_path / "a", f"{tmp_path}/a/../a/*.jpg"])
    assert found.images == (tmp_path / "a/2.jpg", tmp_path / "a/1.jpg")
    assert found.notes == ("3 files named more than once; each is read once",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "the folder has no image or video (looked for .3gp, .avi, .bmp,"),
        ("z.png", "no such file or folder; give images, videos, folders, or patterns in quotes"),
        ("*.jpg", "it matches no image or video"),
        ("*", "its 2 matches are no image or video"),
    ],
)
def test_an_input_that_names_nothing(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "notes.txt")
    with pytest.raises(UserError) as caught:
        find_sources([tmp_path / name])
    assert str(caught.value).startswith(f"{tmp_path / name}: {message}")


def test_images_are_records_with_ids_in_order(tmp_path: Path, write_image) -> None:
    for name in ("b.png", "a.jpg", "deep/c.png"):
        write_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    records = read_images([str(tmp_path), tmp_path / "b.png"], DataConfig())
    assert [(record.id, record.name) for record in records] == [(1, "a.jpg"), (2, "b.png"), (3, "c.png")]
    assert records[2].path == tmp_path / "deep/c.png"


def test_decoded_images_come_in_order_and_large_ones_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("a", 10), ("b", 20), ("c", 10), ("d", 10), ("e", 10)):
        Image.new("RGB", (size, 10), (size, 0, 0)).save(tmp_path / f"{name}.png")
    records = read_images([tmp_path], DataConfig())
    monkeypatch.setattr("detdistill.data.sources.MOST_PIXELS", 200)
    groups = list(decoded(records, 3))
    assert [[record.name[0] for record, _ in group] for group in groups] == [["a"], ["b"], ["c", "d"], ["e"]]
    assert all(image.size == (record.width, record.height) for group in groups for record, image in group)
    assert list(decoded([], 3)) == []
