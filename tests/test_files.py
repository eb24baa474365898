"""Writes that leave nothing half done."""

import json
from pathlib import Path

import pytest

from detdistill.errors import UserError
from detdistill.files import staged, write_json, writing_list


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_staged_files_appear_together_beside_those_that_were_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    (out / "old.txt").write_text("old")
    (out / "deep/a.txt").write_text("old")
    with staged(out) as folder:
        (folder / "deep").mkdir()
        (folder / "deep/a.txt").write_text("new")
        (folder / "b.txt").write_text("new")
        assert (out / "deep/a.txt").read_text() == "old" and not (out / "b.txt").exists()
    assert names(out) == ["b.txt", "deep", "deep/a.txt", "old.txt"]
    assert (out / "deep/a.txt").read_text() == "new"


def test_after_an_exception_nothing_is_left(tmp_path: Path) -> None:
    def fail() -> None:
        with staged(tmp_path / "new/out") as folder:
            (folder / "a.txt").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names(tmp_path) == []


def test_a_folder_that_can_not_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"can't be written \(Permission denied\); choose another"):
        staged(tmp_path / "out").__enter__()


@pytest.mark.parametrize("items", [[], [{"a": 1, "b": [1.5, {"c": "é"}]}], [{"a": 1}, {"a": 2}, {}]])
def test_a_list_that_is_written_item_by_item_is_that_of_write_json(items: list, tmp_path: Path) -> None:
    with writing_list(tmp_path / "a.json") as append:
        for item in items:
            append(item)
    write_json(tmp_path / "b.json", items)
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    assert json.loads((tmp_path / "a.json").read_text()) == items
    with writing_list(tmp_path / "c.json") as append, pytest.raises(ValueError, match="JSON"):
        append({"a": float("nan")})
