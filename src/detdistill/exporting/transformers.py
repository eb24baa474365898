"""A folder that transformers loads without this package: whole, compared with the detector, or not there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detdistill.detectors.transformers.plain import host_of, verify, write
from detdistill.errors import UserError
from detdistill.types import Detector

CONFIG = "config.json"


def export(detector: Detector, out: Path, image_size: tuple[int, int], *, overwrite: bool = False) -> None:
    """The detector, on the CPU, into the folder `out`; its files are replaced there under `overwrite`, others stay.

    image_size: (height, width) that images were fitted into. Raises UserError where transformers can't have it, and then nothing is written.
    """
    host_of(detector)
    _check(out, overwrite)
    with _arriving(out) as folder:
        write(detector, folder, image_size)
        verify(detector, folder, image_size)


def _check(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: it is a file; name a folder")
    if any((out / name).exists() for name in ("model.json", "recipe.yaml")):
        raise UserError(f"--out {out}: is a run folder, whose weights have the same name; name another folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UserError(
            f"--out {out} is not empty; replace what is written there by --overwrite, or name another folder"
        )


@contextmanager
def _arriving(out: Path) -> Iterator[Path]:
    """A folder to write to. On success its files are flushed to the disk and become those of `out`; on an exception it is removed."""
    # On the file system of `out`, which may be a mount of its own.
    above = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    temporary = above / f".{out.name}.{os.getpid()}"
    try:
        with _writing(out):
            temporary.mkdir()
        yield temporary
        with _writing(out):
            out.mkdir(parents=True, exist_ok=True)
            (out / CONFIG).unlink(missing_ok=True)  # an earlier one would read new weights, if this stopped half way
            for file in sorted(
                temporary.iterdir(), key=lambda file: file.name == CONFIG
            ):  # which says that all is there: last
                with file.open("rb") as written:
                    os.fsync(written.fileno())
                file.chmod(0o644)  # safetensors makes files that nobody else can read
                os.replace(file, out / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--out {out}: can't be written ({error.strerror})") from None
