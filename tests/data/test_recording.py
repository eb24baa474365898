"""recording: the video files that it writes."""

from fractions import Fraction
from pathlib import Path

import av
import pytest
from PIL import Image

from detdistill.data import recording as module
from detdistill.data.recording import recording


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
def test_size_rate_and_times_are_kept(encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if encoder not in av.codecs_available:
        pytest.skip(f"this PyAV has no {encoder}")
    monkeypatch.setattr(module, "ENCODERS", (encoder,))
    times = [0.0, 0.04, 0.08, 0.2, 0.24]  # a camera may leave frames out
    with recording(tmp_path / "a.mp4", Fraction(25)) as write:
        for time in times:
            write(Image.new("RGB", (97, 65), "red"), time)
        write(Image.new("RGB", (50, 200), "red"), 0.28)  # scaled to the size of the first one
    with av.open(str(tmp_path / "a.mp4")) as container:
        frames = list(container.decode(video=0))
    assert [(frame.width, frame.height) for frame in frames] == [(96, 64)] * 6
    assert [float(frame.time) for frame in frames] == pytest.approx([*times, 0.28], abs=1e-4)
    if encoder == "libx264":  # MPEG-4 does not state its colors
        assert (frames[0].colorspace, frames[0].color_range) == (5, 1)  # BT.601, so that players show these colors
    assert all(abs(a - b) < 12 for a, b in zip(frames[0].to_image().getpixel((40, 30)), (255, 0, 0), strict=True))


def test_times_that_repeat_stay_in_order(tmp_path: Path) -> None:
    with recording(tmp_path / "a.mp4", Fraction(30)) as write:
        for time in (0.0, 0.0, 0.0):
            write(Image.new("RGB", (32, 32)), time)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert len(list(container.decode(video=0))) == 3


def test_without_pictures_there_is_no_file(tmp_path: Path) -> None:
    with recording(tmp_path / "a.mp4", Fraction(30)):
        pass
    assert not (tmp_path / "a.mp4").exists()


def test_h264_is_preferred() -> None:
    assert module.encoder() == next(name for name in ("libx264", "libopenh264", "mpeg4") if name in av.codecs_available)
