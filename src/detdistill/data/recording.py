"""Writing of videos, picture by picture. It needs PyAV, the extra `video`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from detdistill.data.video import load_av

ENCODERS = ("libx264", "libopenh264", "mpeg4")  # the first one that PyAV has is used
QUALITY = {"libx264": {"crf": "20", "preset": "fast"}}
BITS_PER_PIXEL = 0.25  # of each picture, for encoders without a quality setting
MOST_TICKS = 65535  # per second; MPEG-4 does not allow more
BT601, LIMITED = 5, 1  # the colors that PyAV makes of RGB, in FFmpeg's numbers; players of large videos assume others
SUFFIX = ".mp4"

Write = Callable[[Image.Image, float], None]


def encoder() -> str:
    """The encoder of videos: H.264 if PyAV has it, otherwise MPEG-4."""
    av = load_av("encoding")
    return next(name for name in ENCODERS if name in av.codecs_available)


@contextmanager
def recording(path: Path, rate: Fraction) -> Iterator[Write]:
    """Give a function write(picture, time) that appends a picture to the video `path`, an MP4 without sound.

    rate: frames per second as stated in the file. time: in seconds, ascending; it is kept, also if the steps differ.
    The first picture sets the size, without its last row or column if that is odd; H.264 needs even sides. Other
    pictures are scaled to this size. Without any picture no file is written.
    """
    recorder = _Recorder(path, rate)
    try:
        yield recorder.write
        recorder.finish()
    finally:
        recorder.close()


class _Recorder:
    """The state of one video while it is written."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.av, self.path, self.rate = load_av(str(path)), path, rate
        self.ticks = rate.numerator * max(1, MOST_TICKS // rate.numerator) if rate.numerator <= MOST_TICKS else 60000
        self.container: Any = None
        self.stream: Any = None
        self.last = -1

    def write(self, picture: Image.Image, time: float) -> None:
        """Append a picture."""
        if self.container is None:
            self._open(picture.size)
        size = (self.stream.width, self.stream.height)
        if (picture.width - picture.width % 2, picture.height - picture.height % 2) == size:
            picture = picture.crop((0, 0, *size))
        else:
            picture = picture.resize(size)
        frame = self.av.VideoFrame.from_image(picture)
        self.last = max(round(time * self.ticks), self.last + 1)
        frame.pts, frame.time_base = self.last, Fraction(1, self.ticks)
        self.container.mux(self.stream.encode(frame))

    def _open(self, size: tuple[int, int]) -> None:
        name = encoder()
        self.container = self.av.open(str(self.path), "w", options={"movflags": "faststart"})
        self.stream = self.container.add_stream(name, rate=self.rate, options=QUALITY.get(name, {}))
        self.stream.width, self.stream.height = size[0] - size[0] % 2, size[1] - size[1] % 2
        self.stream.pix_fmt = "yuv420p"
        context = self.stream.codec_context
        context.time_base = Fraction(1, self.ticks)
        context.colorspace, context.color_range = BT601, LIMITED
        if name not in QUALITY:
            self.stream.bit_rate = round(size[0] * size[1] * float(self.rate) * BITS_PER_PIXEL)

    def finish(self) -> None:
        """Write what the encoder still holds."""
        if self.container is not None:
            self.container.mux(self.stream.encode(None))

    def close(self) -> None:
        """Close the file."""
        if self.container is not None:
            self.container.close()
