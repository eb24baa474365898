"""Export a detector to a folder that transformers loads without this package.

The folder appears only when it is complete and the exported model was compared with the detector.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detdistill.detectors.transformers.export import host_of, verify, write
from detdistill.errors import UserError
from detdistill.types import Detector

CONFIG = "config.json"


def export(detector: Detector, out: Path, image_size: tuple[int, int], *, overwrite: bool = False) -> None:
    """Write the detector, on the CPU, into the folder `out`.

    image_size: (height, width) that images were resized to fit into. overwrite: replace files of the same names in
    `out`; other files stay. Raises UserError if transformers can't load the detector; then nothing is written.
    """
    host_of(detector)
    _check_out(out, overwrite)
    with _complete_or_nothing(out) as folder:
        write(detector, folder, image_size)
        verify(detector, folder, image_size)


def _check_out(out: Path, overwrite: bool) -> None:
    """Raises UserError if the export must not be written to `out`."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: choose a folder")
    if any((out / name).exists() for name in ("model.json", "recipe.yaml")):
        raise UserError(f"--out {out} is a run folder, whose weights have the same file name: choose another folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UserError(f"--out {out} is not empty: replace the files there with --overwrite, or choose another folder")


@contextmanager
def _complete_or_nothing(out: Path) -> Iterator[Path]:
    """A temporary folder to write to.

    On success its files are flushed to disk and moved to `out`. On an exception the temporary folder is removed.
    """
    # In the nearest existing folder, because moving files needs the file system of `out`.
    parent = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    temporary = parent / f".{out.name}.{os.getpid()}"
    try:
        with _write_errors(out):
            temporary.mkdir()
        yield temporary
        with _write_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            # Without config.json the folder does not load. So an old config.json goes first, and the new one comes
            # last.
            (out / CONFIG).unlink(missing_ok=True)
            for file in sorted(temporary.iterdir(), key=lambda file: file.name == CONFIG):
                with file.open("rb") as written:
                    os.fsync(written.fileno())
                file.chmod(0o644)  # safetensors writes files that only the owner can read
                os.replace(file, out / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _write_errors(out: Path) -> Iterator[None]:
    """Turn an OSError into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--out {out}: can't be written ({error.strerror})") from None
