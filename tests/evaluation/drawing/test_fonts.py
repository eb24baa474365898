"""The font of the labels has their letters, or the labels are numbers."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import ImageFont

from detdistill.evaluation.drawing import fonts


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    fonts.choose.cache_clear()
    yield
    fonts.choose.cache_clear()


def test_latin_names_need_no_font_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "font_files", lambda: pytest.fail("looked for fonts"))
    assert fonts.choose(("cat", "size 12.5 %")) == (None, ("cat", "size 12.5 %"))


def test_without_a_font_a_name_is_its_number_and_never_empty_boxes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "broken.ttf").write_text("no font")
    monkeypatch.setattr(fonts, "font_folders", lambda: [tmp_path, tmp_path / "missing"])
    with caplog.at_level(logging.WARNING):
        assert fonts.choose(("cat", "猫", "señal")) == (None, ("cat", "class 1", "senal"))
    assert "has the letters of 猫, señal; the labels show class 1, senal." in caplog.text


def test_a_font_of_the_machine_is_used_for_other_letters(caplog: pytest.LogCaptureFixture) -> None:
    path, shown = fonts.choose(("кошка", "γάτα"))
    if path is None:
        pytest.skip("this machine has no font with Cyrillic and Greek letters")
    assert shown == ("кошка", "γάτα") and not caplog.text
    face = ImageFont.truetype(path, 24)
    blank = bytes(face.getmask(fonts.MISSING))
    assert all(bytes(face.getmask(letter)) != blank for letter in "кошкаγάτα")


def test_regular_fonts_of_widespread_families_come_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("Zeta.ttf", "DejaVuSans-Bold.ttf", "deep/DejaVuSans.ttf", "readme.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(fonts, "font_folders", lambda: [tmp_path])
    assert [file.name for file in fonts.font_files()] == ["DejaVuSans.ttf", "Zeta.ttf", "DejaVuSans-Bold.ttf"]
