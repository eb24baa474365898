"""`predict`: boxes on images, videos and cameras, what it writes, and wrong input."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageChops

import detdistill as dd
from detdistill.data import video
from detdistill.data.recording import recording
from detdistill.errors import UserError
from detdistill.run import predicting
from tests.cli.commands import detdistill

from .recipes import read_json

RESULT = ["image_id", "file_name", "category_id", "category_name", "bbox", "score"]


def predict(model: Path, out: Path, *images: Path | str, more: str = "") -> int:
    """Run `predict` on the images, and return its exit code."""
    paths = " ".join(f"'{image}'" for image in images)
    return detdistill(f"predict {paths} --model {model} --device cpu --out {out} {more}")


def noise(width: int, height: int) -> Image.Image:
    """Random colors, the same in each run."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def names(folder: Path) -> list[str]:
    """All files and folders in a folder, also hidden ones."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    noise(120, 90).save(tmp_path / "photos/photo.png")
    return tmp_path / "photos/photo.png"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    with recording(tmp_path / "clip.mp4", Fraction(25)) as write:
        for number in range(7):
            write(noise(96, 64), number / 25)
    return tmp_path / "clip.mp4"


def test_boxes_are_in_pixels_of_the_image_files(teacher_run: Path, tmp_path: Path) -> None:
    (tmp_path / "images/deeper").mkdir(parents=True)
    Image.new("RGB", (200, 50), "red").save(tmp_path / "images/a.jpg")
    noise(90, 300).save(tmp_path / "images/deeper/a.jpg")
    noise(120, 120).save(tmp_path / "b.bmp")
    out = tmp_path / "out"
    assert predict(teacher_run, out, tmp_path / "images", tmp_path / "b.bmp") == 0
    assert names(out) == ["1-a.jpg", "2-a.jpg", "b.bmp.png", "predictions.json"]
    predictions = read_json(out / "predictions.json")
    sizes = {1: (200, 50), 2: (90, 300), 3: (120, 120)}
    classes = read_json(teacher_run / "model.json")["classes"]
    assert predictions
    for prediction in predictions:
        assert list(prediction) == RESULT
        assert prediction["category_name"] == classes[prediction["category_id"] - 1]
        x, y, width, height = prediction["bbox"]
        image_width, image_height = sizes[prediction["image_id"]]
        assert x >= 0
        assert y >= 0
        assert x + width <= image_width + 1e-3
        assert y + height <= image_height + 1e-3
    assert predict(teacher_run, out, tmp_path / "images", tmp_path / "b.bmp") == 2  # `out` is not empty
    assert predict(teacher_run, out, tmp_path / "b.bmp", more="--overwrite") == 0
    assert {row["file_name"] for row in read_json(out / "predictions.json")} == {"b.bmp"}


def test_yolo_labels_are_shares_of_the_image(teacher_run: Path, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    Image.new("RGB", (30, 30)).save(photo.with_suffix(".jpg"))  # another image with the same stem
    pattern = f"{photo.parent}/*.[jp]*g"
    assert predict(teacher_run, out, pattern, more="--save yolo,json --threshold 0") == 0
    assert names(out) == ["classes.txt", "labels", "labels/1-photo.txt", "labels/2-photo.txt", "predictions.json"]
    expected = [row for row in read_json(out / "predictions.json") if row["image_id"] == 2]
    lines = (out / "labels/2-photo.txt").read_text().splitlines()
    assert len(lines) == len(expected) > 0
    for line, row in zip(lines, expected, strict=True):
        label, *numbers = line.split()
        x, y, width, height = row["bbox"]
        shares = [(x + width / 2) / 120, (y + height / 2) / 90, width / 120, height / 90, row["score"]]
        assert [float(number) for number in numbers] == pytest.approx(shares, abs=6e-5)
        assert (out / "classes.txt").read_text().splitlines()[int(label)] == row["category_name"]


def test_a_video_comes_back_with_its_boxes_rate_and_times(
    teacher_run: Path, clip: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    more = "--save drawings,json,yolo --threshold 0.005 --every 2 --batch-size 3"
    assert predict(teacher_run, out, clip, photo, more=more) == 0
    assert "1 image and 1 video (4 frames)" in capsys.readouterr().out
    frames = [row for row in read_json(out / "predictions.json") if "frame" in row]
    assert {(row["image_id"], row["file_name"], row["frame"], row["time"]) for row in frames} == {
        (2 + index, "clip.mp4", 2 * index, 0.08 * index) for index in range(4)
    }
    assert list(frames[0]) == [*RESULT[:2], "frame", "time", *RESULT[2:]]
    assert min(row["score"] for row in frames) >= 0.005
    with av.open(str(out / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(25, 2)
        pictures = [frame.to_image() for frame in container.decode(stream)]
    assert len(pictures) == 4
    assert pictures[0].size == (672, 448)  # seven times as large, so that labels can be read
    lines = (out / "labels/clip/000006.txt").read_text().splitlines()
    assert len(lines) == sum(row["frame"] == 6 for row in frames)


def test_python_returns_the_results_of_images(teacher_run: Path, photo: Path, clip: Path, tmp_path: Path) -> None:
    results = dd.predict(teacher_run, [photo], tmp_path / "out", save=["json"])
    assert results == read_json(tmp_path / "out/predictions.json")
    assert names(tmp_path / "out") == ["predictions.json"]
    assert dd.predict(teacher_run, [clip], tmp_path / "video", threshold=0.0, max_frames=2) == []
    assert {row["frame"] for row in read_json(tmp_path / "video/predictions.json")} == {0, 1}


def test_two_models_are_drawn_side_by_side(
    teacher_run: Path, run_with_other_class: Path, photo: Path, clip: Path, tmp_path: Path
) -> None:
    one, both = tmp_path / "one", tmp_path / "both"
    assert predict(teacher_run, one, photo, clip, more="--threshold 0") == 0
    assert predict(teacher_run, both, photo, clip, more=f"--threshold 0 --compare {run_with_other_class}") == 0
    alone, pair = Image.open(one / "photo.png"), Image.open(both / "photo.png")
    assert pair.width > 2 * alone.width and pair.height > alone.height
    bar = pair.height - alone.height
    left, right = (pair.crop((x, bar, x + alone.width, pair.height)) for x in (0, pair.width - alone.width))
    assert not ImageChops.difference(left, alone).getbbox()
    assert ImageChops.difference(left, right).getbbox()  # another name for the first class
    with av.open(str(both / "clip.mp4")) as container:
        assert container.streams.video[0].width > 2 * 672
    assert (one / "predictions.json").read_text() == (both / "predictions.json").read_text()


def test_tiles_cover_a_large_picture(
    teacher_run: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, seen = predicting.Predictor._detect, []

    def counted(model: Any, batch: Any) -> Any:
        seen.append(len(batch))
        return plain(model, batch)

    monkeypatch.setattr(predicting.Predictor, "_detect", counted)
    whole = dd.predict(teacher_run, [photo], tmp_path / "whole")
    tiled = dd.predict(teacher_run, [photo], tmp_path / "tiled", tile=48)
    assert [row["score"] for row in tiled] == sorted((row["score"] for row in tiled), reverse=True)
    same = dd.predict(teacher_run, [photo], tmp_path / "same", tile=120)
    assert same == whole
    assert seen == [1, 8, 2, 1]  # the whole picture and 3 x 3 tiles, eight at a time


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> None:
    """Camera 0 shows a moving test picture."""
    monkeypatch.setattr(video, "camera_input", lambda av, index: ("testsrc=size=64x48:rate=10", "lavfi", {}))


def test_a_camera_is_recorded(
    camera: None, teacher_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # no file is called 0
    assert predict(teacher_run, tmp_path / "out", "0", more="--max-frames 3") == 0
    assert names(tmp_path / "out") == ["camera-0.mp4", "predictions.json"]
    with av.open(str(tmp_path / "out/camera-0.mp4")) as container:
        assert len(list(container.decode(video=0))) == 3
    assert "camera 0: 64 x 48 pixels, 10 frames/s" in capsys.readouterr().out


def test_ctrl_c_ends_a_camera_and_saves_what_was_recorded(
    camera: None,
    teacher_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # other libraries leave their own
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    plain = predicting.Predictor.detect
    calls = 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            signal.raise_signal(signal.SIGINT)  # in the middle of a frame, which is completed
        return plain(*arguments)

    monkeypatch.setattr(predicting.Predictor, "detect", interrupted)
    assert predict(teacher_run, tmp_path / "out", "0", more="--threshold 0 --max-frames 50") == 0
    with av.open(str(tmp_path / "out/camera-0.mp4")) as container:
        assert len(list(container.decode(video=0))) == 4
    assert {row["frame"] for row in read_json(tmp_path / "out/predictions.json")} == {0, 1, 2, 3}


def test_ctrl_c_in_a_video_file_leaves_nothing(
    teacher_run: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupt(*arguments: Any) -> Iterator[Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(predicting.Predictor, "detect", interrupt)
    assert predict(teacher_run, tmp_path / "out", clip) == 1
    assert capsys.readouterr().err == "detdistill: interrupted\n"
    assert names(tmp_path) == ["clip.mp4"]


def test_an_unreadable_image_is_named_and_nothing_is_written(
    teacher_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "broken.png").write_bytes(b"not an image")
    assert predict(teacher_run, tmp_path / "out", tmp_path / "broken.png") == 2
    message = capsys.readouterr().err
    assert "broken.png" in message and "restore the file or remove it" in message and "annotations" not in message
    assert not (tmp_path / "out").exists()


def test_an_image_that_breaks_off_leaves_nothing_or_is_skipped(
    teacher_run: Path, photo: Path, clip: Path, tmp_path: Path
) -> None:
    half = photo.read_bytes()[:4000]  # the header is sound
    for name in ("a.png", "z.png"):
        (photo.parent / name).write_bytes(half)
    before = names(tmp_path)
    assert predict(teacher_run, tmp_path / "out", photo, photo.parent / "z.png") == 2
    assert names(tmp_path) == before
    more = "--on-bad-record skip --threshold 0 --max-frames 1"
    assert predict(teacher_run, tmp_path / "out", photo.parent, clip, more=more) == 0
    assert names(tmp_path / "out") == ["clip.mp4", "photo.png", "predictions.json"]
    ids = {(row["image_id"], row["file_name"]) for row in read_json(tmp_path / "out/predictions.json")}
    assert ids == {(2, "photo.png"), (4, "clip.mp4")}


@pytest.mark.parametrize(
    ("inputs", "more", "message"),
    [
        ("nothing.png", "", "nothing.png: no such file or folder"),
        ("empty", "", "empty: the folder has no image or video"),
        ("photos/*.tif", "", "photos/*.tif: it matches no image or video"),
        ("text.mp4", "", "text.mp4: can't read the video (Invalid data found"),
        ("photos/photo.png", "--out taken", "--out taken is a file: name a folder"),
        ("photos/photo.png", "--out photos --overwrite", "photos/photo.png is read and must not be replaced"),
        ("photos/photo.png", "--out . --overwrite", "photos/photo.png is read and must not be replaced"),
        ("photos/photo.png", "--tile 31", "--tile 31: tiles have a side of at least 32"),
        ("photos/photo.png", "--tile 6.5", "--tile"),
        ("photos/photo.png", "--compare nowhere", "nowhere"),
        ("photos/photo.png", "--compare RUN --save json", "--save leaves drawings out; add drawings"),
        ("photos/photo.png", "--threshold 1.5", "--threshold 1.5: scores are in 0..1"),
        ("photos/photo.png", "--threshold nan", "--threshold nan: scores are in 0..1"),
        ("photos/photo.png", "--save jsn", "--save: no 'jsn'; choose from drawings, json, yolo"),
        ("photos/photo.png", "--save ''", "--save: no ''"),
        ("photos/photo.png", "--every 2", "--every and --max-frames are for videos"),
        ("clip.mp4", "--every 0", "--every 0: give a number of frames of at least 1"),
        ("clip.mp4", "--max-frames -1", "--max-frames -1"),
        ("88", "", "camera 88: can't be opened"),
        ("photos/photo.png", "--out RUN --overwrite", "is a run folder, whose files would be replaced"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    inputs: str,
    more: str,
    message: str,
    teacher_run: Path,
    photo: Path,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "taken").write_text("a file")
    before, run = names(tmp_path), names(teacher_run)
    out = "" if "--out" in more else "--out out"
    more = more.replace("RUN", str(teacher_run))
    assert detdistill(f"predict '{inputs}' --model {teacher_run} --device cpu {out} {more}") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert names(tmp_path) == before and names(teacher_run) == run


def test_a_link_to_a_file_elsewhere_is_not_replaced(teacher_run: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links/photo.png").symlink_to(photo)
    with pytest.raises(UserError, match="is read and must not be replaced"):
        dd.predict(teacher_run, [tmp_path / "links"], tmp_path / "links", overwrite=True)
    with pytest.raises(UserError, match="is read and must not be replaced"):
        dd.predict(teacher_run, [tmp_path / "links"], photo.parent, overwrite=True)


def test_a_long_video_needs_no_more_memory(teacher_run: Path, tmp_path: Path) -> None:
    """The peak memory of 200 frames is that of 20; all frames at once would need 120 MB more."""
    script = (
        "import resource, sys; from pathlib import Path; import detdistill as dd\n"
        "from detdistill.recipe import TrainConfig\n"
        "dd.predict(sys.argv[1], [sys.argv[2]], Path(sys.argv[3]), train=TrainConfig(device='cpu', batch_size=4))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for count in (20, 200):
        with recording(tmp_path / f"{count}.mp4", Fraction(25)) as write:
            picture = noise(640, 352)
            for number in range(count):
                write(picture, number / 25)
        command = [sys.executable, "-c", script, teacher_run, tmp_path / f"{count}.mp4", tmp_path / f"out-{count}"]
        result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
        peaks.append(int(result.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 60
