"""Images are found by the names that tools write."""

from pathlib import Path

import pytest

from detdistill.data.locate import Locator, name_parts


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a/b.jpg", ["a", "b.jpg"]),
        (r"C:\data\images\b 1.jpg", ["data", "images", "b 1.jpg"]),
        ("/home/anna/set/b.jpg", ["home", "anna", "set", "b.jpg"]),
        ("https://host/images/b%201.jpg?raw=1", ["images", "b 1.jpg"]),
        ("s3://bucket/images/b.jpg", ["images", "b.jpg"]),
        ("/data/local-files/?d=set/b.jpg", ["set", "b.jpg"]),
        ("./b%20.jpg", ["b%20.jpg"]),
    ],
)
def test_name_parts(name: str, parts: list[str]) -> None:
    assert name_parts(name) == parts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jpg", "images/b.jpg", "images/cards/C.JPG"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("b.jpg", "b.jpg"),
        (r"D:\set\images\b.jpg", "images/b.jpg"),  # the longest tail, although b.jpg exists too
        ("https://host/x/images/cards/c.jpg", "images/cards/C.JPG"),  # case is ignored last
        ("/elsewhere/b.jpg", "b.jpg"),
    ],
)
def test_longest_tail(folder: Path, name: str, expected: str) -> None:
    assert Locator([folder]).find(name) == folder / expected


def test_several_folders_and_nothing(folder: Path) -> None:
    locator = Locator([folder / "images", folder])
    assert locator.find("b.jpg") == folder / "images/b.jpg"
    assert locator.find("c.jpg") is None
    assert locator.find("") is None
