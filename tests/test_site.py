"""The site: generated pages, pictures of data flows, a strict build, and the tutorial followed word for word."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image, ImageDraw

from detdistill import cli
from detdistill.methods import METHODS
from tests.test_docs import ROOT, blocks, text

TINY = "--device cpu --batch-size 4 --max-steps 2 --backbone-weights none --model.channels 64 --data.val-fraction 0.2"
SIZES = {"--image-size 320": "--image-size 64", "resnet50": "resnet10t", "_small_100": "_small_050", "--seeds 3": ""}


@pytest.fixture(scope="module")
def generate() -> Iterator[ModuleType]:
    """The package that writes the generated pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        import generate.drawing
        import generate.flow
        import generate.measured
        import generate.text

        yield generate


def test_prose_keeps_equations_and_escapes_the_rest(generate: ModuleType) -> None:
    source = "A: b.\n\n    L = w * |S|\n\nThen a * b < `c * d`.\nPublished code:\n- one\n  more\n* two"
    assert generate.text.prose(source).splitlines() == [
        *["A: b.", "", "    L = w * |S|", "", "Then a \\* b &lt; `c * d`.", "Published code:", "", "- one", "  more"],
        "- two",
    ]


def test_measurements_are_the_rows_of_the_results(generate: ModuleType) -> None:
    (row,) = generate.measured.measurements("cwd")
    assert row.heading.startswith("Dense: GFL")
    assert dict(zip(row.columns, row.cells, strict=True))["gain"] == "+4.3"
    assert len(generate.measured.measurements("mimic2017")) == 2
    assert generate.measured.measurements("kddetr") == []


def test_a_flow_is_what_the_method_read(generate: ModuleType) -> None:
    pkd = generate.flow.record("pkd")
    assert (pkd.student, pkd.teacher, pkd.calls, pkd.labels) == ({"neck"}, {"neck"}, set(), False)
    crosskd = generate.flow.record("crosskd")
    assert crosskd.calls == {("teacher", "resume", False)}
    assert "towers" in crosskd.student
    assert generate.flow.record("kddetr").calls == {("student", "redecode", False), ("teacher", "redecode", False)}


def test_a_picture_shows_what_the_teacher_does_not_compute(generate: ModuleType) -> None:
    picture = ET.fromstring(generate.drawing.drawing("pkd", generate.flow.record("pkd")))
    name = "{http://www.w3.org/2000/svg}"
    dashed = [box for box in picture.iter(f"{name}rect") if box.get("stroke-dasharray")]
    assert len(dashed) == 2  # towers and predictions of the teacher
    assert [item.text for item in picture.iter(f"{name}text")].count("pkd_features") == 1


def test_every_method_and_detector_is_in_the_navigation() -> None:
    listed = re.findall(r"(methods/\w+\.md|detectors/\w+\.md)", text("mkdocs.yml"))
    pages = [f"{path.parent.name}/{path.name}" for path in (ROOT / "docs").glob("*/*.md")]
    assert sorted(listed) == sorted(pages)
    assert {f"methods/{name}.md" for name in METHODS} <= set(listed)


needs_mkdocs = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("mkdocs", "material", "mkdocstrings_handlers")),
    reason="the packages of the extra `docs` are missing",
)


@needs_mkdocs
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"?(\S+)", page.read_text())
        loaded += re.findall(r"<link[^>]*rel=\"?(?:stylesheet|icon|preconnect)\"?[^>]*href=\"?(\S+)", page.read_text())
        assert [link for link in loaded if link.startswith(("http:", "https:", "//"))] == [], page.name
    assert "pearson_distance" in (tmp_path / "api" / "losses.html").read_text()


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    """Photographs with XML files beside them, in the folders train and test, as the tutorial describes them."""
    for split, count in (("train", 12), ("test", 4)):
        folder = tmp_path / "cards" / "images" / split
        folder.mkdir(parents=True)
        for number in range(count):
            photo = Image.effect_noise((96, 64), 40 + number).convert("RGB")
            ImageDraw.Draw(photo).rectangle((20, 10, 60, 50), fill=(200, 30, 30))
            photo.save(folder / f"{split}{number}.JPG")
            kind = ("queen", "king")[number % 2]
            box = "<xmin>20</xmin><ymin>10</ymin><xmax>60</xmax><ymax>50</ymax>"
            size = "<size><width>96</width><height>64</height><depth>3</depth></size>"
            (folder / f"{split}{number}.xml").write_text(
                f"<annotation><filename>{split}{number}.JPG</filename>{size}"
                f"<object><name>{kind}</name><bndbox>{box}</bndbox></object></annotation>"
            )
    return tmp_path


def test_the_tutorial_runs_whole(cards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cards)
    ran = []
    for line in "\n".join(blocks("docs/tutorial.md", "sh")).splitlines():
        for said, done in SIZES.items():
            line = line.replace(said, done)
        words = shlex.split(line, comments=True)
        if words[:1] != ["detdistill"] or words[1] == "doctor":
            continue
        extra = TINY.split() if words[1] in ("train", "distill", "compare") and "--resume" not in words else []
        if words[1] in ("distill", "compare") and extra:
            extra += ["--teacher.sample", "0"]
        extra += ["--seeds", "1"] if words[1] == "compare" else []
        assert cli.main([*words[1:], *extra]) == 0, line
        ran.append(words[1])
    trained = ["inspect", "train", "inspect", "train", "distill", "distill"]
    assert ran == [*trained, "report", "compare", "predict", "export", "evaluate"]
    assert Path("student.onnx").exists()
    assert Path("report.html").exists()


@pytest.mark.parametrize(
    "fragment",
    [
        "Try a lower --lr or a longer --train.warmup_steps, and check these images",
        "is below teacher.floor",
        "To continue anyway, lower --teacher.floor or set --teacher.allow-weak",
        "drowns the task",
        "no known layout. Found",
        "training waits for images",
    ],
)
def test_quoted_messages_are_those_of_the_program(fragment: str) -> None:
    assert fragment in " ".join(text("docs/troubleshooting.md").split())
    assert any(fragment in path.read_text() for path in (ROOT / "src").rglob("*.py"))
