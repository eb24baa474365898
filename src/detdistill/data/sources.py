"""What a person names as input of a prediction: image files, folders, patterns, videos and cameras."""

import glob
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from detdistill.data.faults import Faults
from detdistill.data.images import READERS, SUFFIXES, read_headers, resolve_image
from detdistill.data.records import Objects, Record
from detdistill.data.video import VIDEO_SUFFIXES, Camera, VideoFile
from detdistill.errors import UserError, plural
from detdistill.recipe import DataConfig

MOST_PIXELS = 64 * 2**20  # of the decoded images that are in memory at a time, if there are several
REMEDY = "give images, videos, folders, or patterns in quotes such as 'photos/*.jpg'"


@dataclass(frozen=True)
class Sources:
    """The inputs of a prediction, each once, in the order in which they were named.

    images: image files. videos: video files and cameras. notes: lines for the user.
    """

    images: tuple[Path, ...]
    videos: tuple[VideoFile | Camera, ...]
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are read."""
        return (*self.images, *(video.path for video in self.videos if isinstance(video, VideoFile)))


def find_sources(inputs: Sequence[Path | str | int]) -> Sources:
    """The images, videos and cameras that the inputs name.

    A file is a video if its name ends as one, and otherwise an image. Of a folder with its subfolders and of a pattern
    (`*`, `?`, `[...]`, `**` for any folders), the images and videos are taken, sorted by path, without hidden files. A
    number is the index of a camera, unless a file has this name. Raises UserError if an input names nothing.
    """
    files: list[Path] = []
    cameras: list[Camera] = []
    for item in inputs:
        path = Path(item).expanduser() if isinstance(item, Path | str) else Path(str(item))
        if not path.exists() and str(path).isdecimal():
            cameras.append(Camera(int(str(path))))
        else:
            files += _files_of(path)
    different = {file.resolve(): file for file in reversed(files)}
    once = [file for file in files if different[file.resolve()] is file]
    repeated = len(files) - len(once)
    notes = (f"{plural(repeated, 'file')} named more than once; each is read once",) if repeated else ()
    images = tuple(file for file in once if file.suffix.lower() not in VIDEO_SUFFIXES)
    videos = (VideoFile(file) for file in once if file.suffix.lower() in VIDEO_SUFFIXES)
    return Sources(images, (*videos, *dict.fromkeys(cameras)), notes)


def read_images(paths: Sequence[Path | str], config: DataConfig) -> list[Record]:
    """Image files, and the images in folders and their subfolders, as records without objects. The ids begin at 1.

    The images of a folder are sorted by path. Raises UserError with the path if an image can't be read. With
    on_bad_record `skip` the image is left out, with a warning in the log.
    """
    faults = Faults(config.on_bad_record)
    files = find_sources(paths).images
    records = []
    for id, (path, header) in enumerate(zip(files, read_headers(files, faults), strict=True), start=1):
        resolved = resolve_image(path, header, None, faults, "")
        if resolved is not None:
            image, size = resolved
            records.append(Objects.empty().to_record(id, path.name, size, image))
    faults.log_notes()
    if not records:
        raise UserError(f"{', '.join(map(str, paths))}: no readable image; give images or folders of images")
    return records


def decoded(records: Sequence[Record], count: int) -> Iterator[list[tuple[Record, Image.Image]]]:
    """The records with their images, at most `count` at a time, in their order. The next ones are decoded meanwhile.

    There are fewer at a time if they are large. Raises UserError if an image can't be decoded.
    """
    groups: list[list[Record]] = []
    pixels = 0
    for record in records:
        size = record.height * record.width
        if not groups or len(groups[-1]) == count or pixels + size > MOST_PIXELS:
            groups.append([])
            pixels = 0
        groups[-1].append(record)
        pixels += size
    with ThreadPoolExecutor(READERS) as pool:
        following = [pool.submit(record.image) for record in groups[0]] if groups else []
        for index, group in enumerate(groups):
            current = following
            following = [pool.submit(record.image) for record in groups[index + 1]] if index + 1 < len(groups) else []
            yield [(record, image.result()) for record, image in zip(group, current, strict=True)]


def _files_of(path: Path) -> list[Path]:
    """The images and videos of a file, folder or pattern. Raises UserError if there is none."""
    if path.is_dir():
        found = _visible(path.rglob("*"))
        if not found:
            raise UserError(f"{path}: the folder has no image or video (looked for {_endings()}); {REMEDY}")
        return found
    if path.exists():
        return [path]
    if not glob.has_magic(str(path)):
        raise UserError(f"{path}: no such file or folder; {REMEDY}")
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
    found = _visible(matches)
    if not found:
        count = f"its {plural(len(matches), 'match', 'matches')} are no" if matches else "it matches no"
        raise UserError(f"{path}: {count} image or video (looked for {_endings()}); {REMEDY}")
    return found


def _visible(paths: Iterable[Path]) -> list[Path]:
    """The images and videos among the paths, sorted, without hidden files."""
    known = SUFFIXES | VIDEO_SUFFIXES
    shown = (path for path in paths if path.suffix.lower() in known and not path.name.startswith("."))
    return sorted(path for path in shown if path.is_file())


def _endings() -> str:
    return ", ".join(sorted(SUFFIXES | VIDEO_SUFFIXES))
