"""Videos and cameras, frame by frame. They need PyAV, the extra `video`."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from detdistill.errors import UserError, plural

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv", ".mts", ".m2ts"}
)
TIMEOUT = 10  # seconds that a camera may take to open and to give a frame
USUAL_RATE = Fraction(30)  # frames per second, if a source does not state a possible rate
HIGHEST_RATE = 1000  # frames per second; some cameras state the ticks of their clock

logger = logging.getLogger("detdistill.data")


@dataclass(frozen=True)
class VideoFile:
    """A video file."""

    path: Path

    @property
    def name(self) -> str:
        """The file name."""
        return self.path.name

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Camera:
    """A camera of this machine, by its index from 0."""

    index: int

    @property
    def name(self) -> str:
        """A name for files and results."""
        return f"camera-{self.index}"

    def __str__(self) -> str:
        return f"camera {self.index}"


@dataclass(frozen=True)
class Frame:
    """A picture of a video.

    number: of the frame in the video, from 0.
    time: seconds since the first frame.
    picture: RGB and upright.
    """

    number: int
    time: float
    picture: Image.Image


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video when it is opened.

    size: (width, height) of the upright frames.
    rate: frames per second.
    frames: number of frames as the file states it, or None.
    has_sound: True if there is a sound track.
    """

    size: tuple[int, int]
    rate: Fraction
    frames: int | None
    has_sound: bool


def load_av(reader: str) -> Any:
    """PyAV. Raises UserError with the command that installs it. reader: what needs it, for the message."""
    try:
        import av
        import av.error
    except ImportError:
        raise UserError(f"{reader}: videos and cameras need PyAV; install it with: pip install av") from None
    av.logging.set_libav_level(av.logging.PANIC)  # a fault is told in one line, by an exception
    return av


@contextmanager
def open_video(
    source: VideoFile | Camera, every: int = 1, most: int | None = None, skip_damage: bool = False
) -> Iterator[tuple[VideoInfo, Iterator[Frame]]]:
    """What is known of the video, and every n-th of its frames, at most `most`. Only one frame is in memory.

    skip_damage: leave out what can't be decoded. A camera that gives no more frames ends the frames with a warning.
    Raises UserError if the source is no video, has no frame or can't be decoded, with the time.
    """
    with _container(source) as container:
        decoded = _decoded(source, container, skip_damage)
        first = next(decoded, None)
        if first is None:
            raise UserError(f"{source}: the video has no frame; restore the file or leave it out")
        rate = _rate(container.streams.video[0])
        picture = _upright(first)
        stated = container.streams.video[0].frames or None
        yield (
            VideoInfo(picture.size, rate, stated, bool(container.streams.audio)),
            _frames(first, decoded, rate, every, most),
        )


def _frames(first: Any, rest: Iterator[Any], rate: Fraction, every: int, most: int | None) -> Iterator[Frame]:
    """The chosen frames as pictures. Frames without a time follow each other at the rate."""
    start, frame, number, given = first.time, first, 0, 0
    while frame is not None and (most is None or given < most):
        if number % every == 0:
            has_time = start is not None and frame.time is not None
            time = float(frame.time - start) if has_time else float(number / rate)
            yield Frame(number, time, _upright(frame))
            given += 1
        number += 1
        if most is None or given < most:
            frame = next(rest, None)


@contextmanager
def _container(source: VideoFile | Camera) -> Iterator[Any]:
    """The opened file or camera. Raises UserError if it can't be opened or has no pictures."""
    av = load_av(str(source))
    try:
        container = _open_camera(av, source) if isinstance(source, Camera) else av.open(str(source.path))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if isinstance(source, Camera):
            problem, remedy = "can't be opened", "connect it, close other programs that use it, or give another index"
        else:
            problem, remedy = "can't read the video", "restore the file or leave it out"
        raise UserError(f"{source}: {problem} ({_reason(error)}); {remedy}") from None
    with container:
        if not container.streams.video:
            raise UserError(f"{source}: the file has no pictures, only {_kinds(container)}; leave it out")
        yield container


def camera_input(av: Any, index: int) -> tuple[str, str, dict[str, str]]:
    """Name, input format and options with which FFmpeg opens a camera on this system.

    Raises ValueError if the system has no such camera.
    """
    if sys.platform == "darwin":
        return str(index), "avfoundation", {"framerate": "30"}  # its default rate suits few cameras
    if sys.platform == "win32":
        cameras = [device.name for device in av.enumerate_input_devices("dshow") if "video" in device.media_types]
        if index >= len(cameras):
            raise ValueError(f"{plural(len(cameras), 'camera')} found")
        return f"video={cameras[index]}", "dshow", {}
    return f"/dev/video{index}", "v4l2", {}


def _open_camera(av: Any, camera: Camera) -> Any:
    file, format, options = camera_input(av, camera.index)
    return av.open(file, format=format, options=options, timeout=TIMEOUT)


def _decoded(source: VideoFile | Camera, container: Any, skip_damage: bool) -> Iterator[Any]:
    """The decoded frames, one after the other."""
    av = load_av(str(source))
    stream = container.streams.video[0]
    if isinstance(source, VideoFile):
        stream.thread_type = "AUTO"
    packets, damaged, time = container.demux(stream), 0, 0.0
    while True:
        frames = []
        try:
            packet = next(packets, None)
            if packet is None:
                break
            frames = packet.decode()
        except (av.error.FFmpegError, OSError) as error:
            if isinstance(source, Camera):
                logger.warning("%s gives no more frames (%s)", source, _reason(error))
                break
            if not skip_damage:
                raise UserError(
                    f"{source}: can't decode the video after {time:.2f} s ({_reason(error)}); restore the file, or "
                    "leave out the damaged part with --on-bad-record skip"
                ) from None
            damaged += 1
        for frame in frames:
            time = time if frame.time is None else float(frame.time)
            yield frame
    if damaged:
        logger.warning("%s: %s that can't be decoded left out", source, plural(damaged, "part"))


def _upright(frame: Any) -> Image.Image:
    """The frame as an RGB picture, turned as its file says."""
    picture = frame.to_image()
    turns = round(frame.rotation / 90) % 4
    operations = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    operation = operations[turns]
    return picture if operation is None else picture.transpose(operation)


def _rate(stream: Any) -> Fraction:
    """Frames per second of a stream."""
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate and 0 < rate <= HIGHEST_RATE:
            return Fraction(rate)
    return USUAL_RATE


def _kinds(container: Any) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "no data"


def _reason(error: Exception) -> str:
    """The cause of an error of FFmpeg, without the file name and the number of the error."""
    cause = getattr(error, "strerror", None) or str(error)  # an InvalidDataError of PyAV is no OSError
    return " ".join(cause.split())
