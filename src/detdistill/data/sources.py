"""What a person names as input of a prediction: image files, folders, patterns, videos and cameras."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detdistill.data.faults import Faults
from detdistill.data.images import SUFFIXES, read_headers, resolve_image
from detdistill.data.records import Objects, Record
from detdistill.data.video import VIDEO_SUFFIXES, Camera, VideoFile
from detdistill.errors import UserError, plural
from detdistill.recipe import DataConfig

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


def _visible(paths: Sequence[Path] | object) -> list[Path]:
    known = SUFFIXES | VIDEO_SUFFIXES
    return sorted(
        path
        for path in paths  # type: ignore[attr-defined]
        if path.suffix.lower() in known and not path.name.startswith(".") and path.is_file()
    )


def _endings() -> str:
    return ", ".join(sorted(SUFFIXES | VIDEO_SUFFIXES))
