"""Videos and cameras: their frames, times and faults."""

import builtins
import struct
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest
from PIL import Image

from detdistill.data import video
from detdistill.data.recording import recording
from detdistill.data.video import Camera, VideoFile, camera_input, open_video
from detdistill.errors import UserError

SIZE = (96, 64)


def write_video(path: Path, count: int = 8, rate: Fraction = Fraction(25)) -> Path:
    """A video whose frame n has a bright left half for even n, and a bright right half for odd n."""
    with recording(path, rate) as write:
        for number in range(count):
            picture = Image.new("RGB", SIZE, "black")
            picture.paste("white", (48 * (number % 2), 0, 48 * (number % 2) + 48, 64))
            write(picture, float(number / rate))
    return path


def frames(source: VideoFile | Camera, **options: Any) -> list[video.Frame]:
    with open_video(source, **options) as (_, found):
        return list(found)


def test_frames_come_with_number_time_and_pixels(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", rate=Fraction(30000, 1001))
    with open_video(VideoFile(path)) as (info, found):
        assert info == video.VideoInfo(SIZE, Fraction(30000, 1001), 8, has_sound=False)
        read = list(found)
    assert [frame.number for frame in read] == list(range(8))
    assert [frame.time for frame in read] == pytest.approx([number * 1001 / 30000 for number in range(8)], abs=1e-6)
    for frame in read:
        left, right = frame.picture.getpixel((20, 30))[0], frame.picture.getpixel((70, 30))[0]
        assert (left > 200, right > 200) == (frame.number % 2 == 0, frame.number % 2 == 1)


def test_every_and_most(tmp_path: Path) -> None:
    source = VideoFile(write_video(tmp_path / "a.mp4"))
    assert [frame.number for frame in frames(source, every=3)] == [0, 3, 6]
    assert [(frame.number, round(frame.time, 3)) for frame in frames(source, every=3, most=2)] == [(0, 0), (3, 0.12)]


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    data = bytearray(write_video(tmp_path / "a.mp4", count=1).read_bytes())
    matrix = data.index(b"tkhd") + 44  # ISO/IEC 14496-12, track header of version 0
    assert struct.unpack(">9i", data[matrix : matrix + 36])[:5] == (65536, 0, 0, 0, 65536)
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, SIZE[1] << 16, 0, 1 << 30)
    (tmp_path / "phone.mp4").write_bytes(data)
    with open_video(VideoFile(tmp_path / "phone.mp4")) as (info, found):
        assert info.size == (64, 96)
        picture = next(found).picture
    assert picture.getpixel((30, 20))[0] > 200  # a quarter turn clockwise takes the left half to the top
    assert picture.getpixel((30, 70))[0] < 50


def wrong_text(path: Path) -> None:
    path.write_text("this is no video\n")


def wrong_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        sound.sample_rate = 8000
        sound.planes[0].update(bytes(4096))
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))


def wrong_cut(path: Path) -> None:
    write_video(path, 30)
    path.write_bytes(path.read_bytes()[:1500])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (wrong_text, "can't read the video (Invalid data found when processing input); restore the file"),
        (wrong_sound, "the file has no pictures, only audio"),
        (wrong_cut, "can't decode the video after 0.00 s ("),
        (lambda path: None, "can't read the video (No such file or directory)"),
    ],
)
def test_a_file_that_is_no_video_is_one_line(make: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    make(path)
    with pytest.raises(UserError) as caught:
        frames(VideoFile(path))
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_damaged_part_stops_or_is_left_out(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mp4", 30)
    data = bytearray(whole.read_bytes())
    with av.open(str(whole)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for start, size in packets[8:12]:
        data[start : start + size] = bytes(size)
    whole.write_bytes(data)
    with pytest.raises(UserError, match="leave out the damaged part with --on-bad-record skip"):
        frames(VideoFile(whole))
    assert 15 < len(frames(VideoFile(whole), skip_damage=True)) < 30


def test_a_video_without_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4")
    monkeypatch.setattr(video, "_decoded", lambda *arguments: iter(()))
    with pytest.raises(UserError, match="the video has no frame"):
        frames(VideoFile(path))


def test_without_pyav_the_message_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_import = builtins.__import__

    def without_av(name: str, *arguments: Any) -> Any:
        if name.split(".")[0] == "av":
            raise ImportError(name)
        return plain_import(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(UserError, match=r"clip\.mp4: videos and cameras need PyAV; install it with: pip install av$"):
        frames(VideoFile(Path("clip.mp4")))


def test_a_camera_gives_frames_until_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "camera_input", lambda av, index: ("testsrc=size=64x48:rate=10", "lavfi", {}))
    with open_video(Camera(0), most=4) as (info, found):
        assert (info.size, info.rate) == ((64, 48), 10)
        assert [round(frame.time, 3) for frame in found] == [0, 0.1, 0.2, 0.3]


def test_a_camera_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(UserError, match=r"^camera 77: can't be opened \(.*\); connect it"):
        frames(Camera(77))


def test_each_system_names_its_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [SimpleNamespace(name="Mic", media_types=["audio"]), SimpleNamespace(name="Cam", media_types=["video"])]
    fake: Any = SimpleNamespace(enumerate_input_devices=lambda format: devices)
    names = {}
    for system in ("linux", "darwin", "win32"):
        monkeypatch.setattr(sys, "platform", system)
        names[system] = camera_input(fake, 0)[:2]
    assert names == {
        "linux": ("/dev/video0", "v4l2"),
        "darwin": ("0", "avfoundation"),
        "win32": ("video=Cam", "dshow"),
    }
    with pytest.raises(ValueError, match="1 camera found"):
        camera_input(fake, 1)
