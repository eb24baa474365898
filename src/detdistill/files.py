"""Atomic writes: a file is written under a temporary name, flushed to the disk and then renamed.

A reader never sees a file that is written only in part.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, and rename it to `path` on success.

    On an exception the temporary file is removed and `path` is not changed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")  # some writers depend on the suffix
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
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
