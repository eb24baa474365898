"""Atomic writes: a file is written under a temporary name, flushed to the disk and then renamed.

A reader never sees a file that is written only in part.
"""

import json
import os
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from detdistill.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, and rename it to `path` on success.

    On an exception the temporary file is removed and `path` is not changed. Raises UserError if the folder can't be
    made or the file can't be written.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")  # some writers depend on the suffix
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.filename is None or Path(os.fsdecode(error.filename)) not in (path, temporary, *path.parents):
            raise  # it concerns another file
        raise UserError(f"{path}: can't be written ({error.strerror}); choose another place") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flush a folder to the disk. A rename is on the disk only after this."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, content: Mapping[str, Any] | list) -> None:
    """Write an indented JSON file atomically. Raises ValueError for NaN, which JSON doesn't have."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give an empty folder to write into. On success its files are moved into the folder `out`.

    Files of `out` with the same names are replaced, others stay. On an exception nothing is left, and `out` is not
    changed. Raises UserError if nothing can be written there.
    """
    near = next(folder for folder in (out, *out.parents) if folder.exists())
    if not near.is_dir():
        raise UserError(f"--out {out}: {near} is a file, not a folder; choose another folder")
    staging = near / f".partial-{os.getpid()}"  # on the same disk as `out`, so that a file can be renamed
    try:
        staging.mkdir()
    except OSError as error:
        raise UserError(f"--out {out}: the folder can't be written ({error.strerror}); choose another folder") from None
    try:
        yield staging
        out.mkdir(parents=True, exist_ok=True)
        for path in sorted(staging.rglob("*")):
            target = out / path.relative_to(staging)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(path, target)
        _sync_folder(out)
    finally:
        shutil.rmtree(staging)


@contextmanager
def writing_list(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Give a function that appends an item to a JSON list, which needs no memory for it. The file is that of
    `write_json`.

    Raises ValueError for NaN. It is not atomic: write into a `staged` folder.
    """
    with path.open("w") as file:
        count = 0

        def append(item: Mapping[str, Any]) -> None:
            nonlocal count
            file.write("[\n" if count == 0 else ",\n")
            file.write(textwrap.indent(json.dumps(item, indent=2, allow_nan=False), "  "))
            count += 1

        yield append
        file.write("\n]\n" if count else "[]\n")
