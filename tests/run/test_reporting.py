"""`report` from runs to the file, and what is left of the page if the data set is not what it was."""

import html
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from detdistill import run
from detdistill.data import open_data
from detdistill.errors import UserError
from detdistill.run.reporting import report, report_at_end

from .made_runs import recipe, write_comparison, write_run


def text_of(page: Path) -> str:
    """The words of a page, without tags, style and script."""
    bare = re.sub(r"<(style|script)>.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", bare)).split())


def test_a_comparison_gives_the_whole_page(tmp_path: Path) -> None:
    table = write_comparison(tmp_path / "t", {"none": (0.4, 0.3), "pkd": (0.0, 0.0)}, "torchvision:x")
    path = report([table], resamples=20)
    words = text_of(path)
    assert path == table / "report.html"
    assert "Distillation made the student worse" not in words and "plainly, and with pkd from the teacher" in words
    for title in ("Distillation helped most", "AP by class", "Precision at IoU 0.75", "Confusion of pkd", "task_box"):
        assert title in words
    assert "torchvision:x" in words and "Not available" not in words


def test_two_data_sets_are_two_parts(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", recipe()), write_run(tmp_path / "b", recipe(data={"path": "shapes:44"}))]
    words = text_of(report(runs, tmp_path / "page.html", resamples=2))
    assert "2 students or data sets. Their numbers are not comparable" in words


@pytest.mark.parametrize("case", ["none", "several", "folder", "exists", "resamples"])
def test_a_wrong_call_is_refused_before_anything_is_written(tmp_path: Path, case: str) -> None:
    folder = write_run(tmp_path / "a", recipe())
    (tmp_path / "old.html").write_text("old")
    calls = {
        "none": (lambda: report([]), "no runs"),
        "several": (lambda: report([folder, folder]), "several folders need --out"),
        "folder": (lambda: report([folder], tmp_path), "is a folder: name a file"),
        "exists": (lambda: report([folder], tmp_path / "old.html"), "exists: replace it with --overwrite"),
        "resamples": (lambda: report([folder], tmp_path / "new.html", resamples=0), "--resamples 0"),
    }
    before = sorted(tmp_path.rglob("*"))
    call, message = calls[case]
    with pytest.raises(UserError, match=message):
        call()
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "old.html").read_text() == "old"
    report([folder], tmp_path / "old.html", resamples=2, overwrite=True)
    assert "<!DOCTYPE html>" in (tmp_path / "old.html").read_text()


def photographs(root: Path, count: int = 30) -> Path:
    """A YOLO data set with a split for tests: a dark square on each image."""
    for index in range(count):
        split = "test" if index % 3 == 0 else "train"
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (64, 64), (200, 200, 200))
        image.paste((20, 20, 20), (16, 16, 16 + index, 48))
        image.save(root / "images" / split / f"{index:02}.png")
        width = index / 64 if index else 1 / 64
        (root / "labels" / split / f"{index:02}.txt").write_text(f"0 {16 / 64 + width / 2} 0.5 {width} 0.5\n")
    names = "path: .\ntrain: images/train\nval: images/test\ntest: images/test\nnames: ['<b>square']\n"
    (root / "data.yaml").write_text(names)
    return root


def test_lost_images_cost_their_pictures_and_nothing_else(tmp_path: Path) -> None:
    data = photographs(tmp_path / "photographs")
    settings = recipe(data={"path": str(data)})
    folder = write_run(tmp_path / "a", settings, moved=0.3)
    whole = text_of(report([folder], tmp_path / "whole.html", resamples=2))
    assert "<b>square" in whole and "Incomplete" not in whole
    (data / "images" / "test" / "03.png").unlink()
    words = text_of(report([folder], tmp_path / "page.html", resamples=2))
    assert "Incomplete" in words and "1 image of the runs" in words and "Confusion of plain" in words
    shutil.rmtree(data)
    words = text_of(report([folder], tmp_path / "none.html", resamples=2))
    assert "The data set can't be read" in words and words.count("Not available") >= 4
    assert "AP by class" in words and "task_box" in words  # these need no images


def test_boxes_that_give_another_ap_are_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", recipe())
    (folder / "predictions.json").write_text("[]")
    words = text_of(report([folder], resamples=2))
    assert "have AP 0.0 on the data set as it is now, and had 100.0 at the end of the run" in words


def test_a_run_without_boxes_has_the_rest(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", recipe("pkd"))
    (folder / "predictions.json").unlink()
    (folder / "log.jsonl").unlink()
    words = text_of(report([folder], resamples=2))
    assert "no predictions.json" in words and "no log.jsonl" in words and "AP by class" in words


def test_a_run_and_a_comparison_end_with_their_page(teacher_run: Path) -> None:
    assert "No student was distilled" in text_of(teacher_run / "report.html")
    assert run.report is report


def test_a_page_that_fails_does_not_fail_the_run(tmp_path: Path) -> None:
    settings = recipe()
    folder, data = write_run(tmp_path / "a", settings), open_data(settings.data)
    console = Console(record=True, width=300)
    report_at_end(folder, data, boxes=10**9, console=console)  # far too many for a few seconds
    assert f"`detdistill report {folder}` writes a page" in console.export_text()
    (folder / "log.jsonl").write_text("{")
    report_at_end(folder, data, boxes=10, console=console)
    assert "warning:" in (printed := console.export_text()) and "log.jsonl, line 1" in printed
    assert not (folder / "report.html").exists()
    (folder / "log.jsonl").write_text(json.dumps({"step": 1, "total": 1.0}))
    report_at_end(folder, data, boxes=10, console=console)
    assert (folder / "report.html").exists()
