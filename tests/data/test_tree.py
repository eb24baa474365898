"""The list of all files of a data set."""

import os
from pathlib import Path

import pytest

from detdistill.data.tree import child, only_folder, tree
from detdistill.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("set/B.JPG", "set/a.xml", "set/.cache/x.jpg", "set/__MACOSX/a.jpg", "set/.a.png", "other/c.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    tree.cache_clear()
    return tmp_path


def test_hidden_files_are_left_out_and_endings_may_be_upper_case(root: Path) -> None:
    listed = tree(root / "set")
    assert [path.name for path in listed.files] == ["B.JPG", "a.xml"]
    assert listed.images == listed.ending(".jpg") == [root / "set/B.JPG"]


def test_links_are_followed_once(root: Path) -> None:
    (root / "set/linked").symlink_to(root / "other")
    (root / "set/up").symlink_to(root / "set")
    listed = tree(root / "set")
    assert [str(path.relative_to(root)) for path in listed.images] == ["set/B.JPG", "set/linked/c.png"]
    assert listed.parts(root / "set/linked/c.png") == ("linked",)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a folder that this user can't list")
def test_a_folder_that_cannot_be_listed_is_named(root: Path) -> None:
    (root / "other").chmod(0)
    with pytest.raises(UserError, match="other: can't list the folder"):
        tree(root)


def test_children(root: Path) -> None:
    assert child(root / "set", ("annotations",)) is None
    (root / "set/ANNOTATIONS").mkdir()
    assert child(root / "set", ("xml", "annotations")) == root / "set/ANNOTATIONS"
    assert only_folder(root) is None
    assert only_folder(root / "set") == root / "set/ANNOTATIONS"  # hidden folders do not count
