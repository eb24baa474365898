"""Files of weights, read from disk without running any code that they contain."""

import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from detdistill.errors import UserError, nearest

WHOLE_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILES = tuple(f"{name}.index.json" for name in WHOLE_FILES)
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.(safetensors|bin)")
# The classes that a file without a table of its contents may name besides tensors (torch.save before version 1.6).
LEGACY_CLASSES = ("argparse.Namespace", "numpy.dtype", "numpy.core.multiarray.scalar")
NUMBER_CLASSES = ("numpy", "functools")  # packages whose objects restore themselves from a tuple
# Python expressions of the remedies.
LOAD = "torch.load({path}, weights_only=False)"
LOAD_SCRIPT = 'torch.jit.load({path}, "cpu")'
LOAD_PICKLE = '__import__("pickle").load(open({path}, "rb"))'
WHOLE = '(c["model"] if isinstance(c, dict) else c).state_dict()'
ARRAYS = '{k: torch.as_tensor(v) for k, v in c.get("model", c).items()}'

LEGACY_HEAD = b"\x80\x02\x8a\nl\xfc\x9cF"  # of files that torch.save wrote before version 1.6
HEAD = 512  # bytes that show the kind of a file


class Ignored:
    """Stands for an object that restores itself from a tuple. It keeps nothing."""

    def __new__(cls, *_: object) -> "Ignored":
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""


class StandIn:
    """Stands for a class that a file names. The class is not imported, and none of its code runs.

    An "object" of it is an OrderedDict: torch's reader fills it with the items or attributes of the real object, but
    accepts no other type for that.
    """

    def __new__(cls, *_: object) -> "OrderedDict[str, Any]":  # type: ignore[misc]
        return OrderedDict()


def split_choice(text: str) -> tuple[Path, str]:
    """Split FILE#NAME into the file and the name. The name is empty if there is none, or if `text` itself exists."""
    file, mark, name = text.rpartition("#")
    if not mark or Path(text).exists() or not Path(file).exists():
        return Path(text), ""
    return Path(file), name


def read_content(path: Path, flag: str) -> Any:
    """What a file of weights holds, with its tensors on the CPU. Usually a mapping.

    path: a safetensors file, a file of torch.save, an index of shards (`model.safetensors.index.json`), one shard, or
    a folder with one of these. flag: the flag that named the file, for messages.
    Objects of classes other than tensors and plain containers are replaced by empty ones; see `is_module`.
    Raises UserError if the file can't be read.
    """
    files = _files(path, flag)
    if len(files) == 1:
        return _read_one(files[0], flag)
    merged: dict[str, Any] = {}
    for file in files:
        content = _read_one(file, flag)
        if not isinstance(content, Mapping):
            raise UserError(f"{flag} {file}: this shard holds no tensors by name; copy the folder again")
        merged |= content
    return merged


def is_module(content: object) -> bool:
    """True if a file holds a whole module (torch.save(model)) in this place, instead of its state dict."""
    return isinstance(content, OrderedDict) and "_modules" in vars(content)


def conversion(path: Path, expression: str = WHOLE, load: str = LOAD) -> str:
    """The remedy for a file that can't be read safely: Python statements that write its state dict.

    load: the expression that loads the file at {path}. expression: of the state dict, from `c`, the loaded content.
    """
    lines = f'import torch; c = {load.format(path=json.dumps(str(path)))}; torch.save({expression}, "weights.pt")'
    return f"if you trust the file, run this where its training code is installed, and give weights.pt: {lines}"


def _files(path: Path, flag: str) -> list[Path]:
    """The files that hold the weights of `path`. Raises UserError if a shard or the whole is missing."""
    if path.is_dir():
        names = [name for name in (*WHOLE_FILES, *INDEX_FILES) if (path / name).is_file()]
        shards = sorted(file for file in path.iterdir() if SHARD.fullmatch(file.name))
        if not names and not shards:
            known = ", ".join((*WHOLE_FILES, *INDEX_FILES))
            problem = f"can't read the file: it is a folder without weights ({known})"
            raise UserError(f"{flag} {path}: {problem}; give the file itself")
        return _files(path / names[0] if names else shards[0], flag)
    if path.name.endswith(".index.json"):
        return _existing([path.with_name(name) for name in _index(path, flag)], flag)
    match = SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    stem, count, ending = match[1], int(match[3]), match[4]
    names = [f"{stem}-{number:05}-of-{match[3]}.{ending}" for number in range(1, count + 1)]
    return _existing([path.with_name(name) for name in names], flag)


def _index(path: Path, flag: str) -> list[str]:
    """The names of the shards in an index. Raises UserError if it can't be read or names none."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{flag} {path}: can't read the file ({error.strerror or error}); check the path") from None
    except ValueError as error:
        raise UserError(f"{flag} {path}: not JSON ({error}); copy or download it again") from None
    parts = content.get("weight_map") if isinstance(content, dict) else None
    names = set(parts.values()) if isinstance(parts, dict) and all(map(_is_plain_name, parts.values())) else set()
    if not names:
        problem = "its field weight_map (tensor names to files of this folder) is missing or wrong"
        raise UserError(f"{flag} {path}: {problem}; give the index that belongs to the shards")
    return sorted(names)


def _is_plain_name(name: object) -> bool:
    """True if `name` is the name of a file, without folders."""
    return isinstance(name, str) and bool(name) and Path(name).name == name


def _existing(files: list[Path], flag: str) -> list[Path]:
    """The files. Raises UserError if one does not exist."""
    missing = [file for file in files if not file.is_file()]
    if missing:
        problem = f"{len(missing)} of {len(files)} shards are missing, the first is {missing[0].name}"
        raise UserError(f"{flag} {files[0].parent}: {problem}; copy all of them into this folder")
    return files


def _read_one(path: Path, flag: str) -> Any:
    """The content of one file. Raises UserError if it can't be read."""
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD)
        kind = _kind(head)
        if kind == "safetensors":
            return load_file(path)
        if kind == "torch":
            return _read_torch(path, flag)
        if kind == "pickle":
            kind = f"it is a pickle, which can run any code; {conversion(path, ARRAYS, LOAD_PICKLE)}"
    except OSError as error:
        problem = f"can't read the file ({error.strerror or error})"
        remedy = nearest(path.name, _names(path.parent)) or "; check the path and your permissions"
        raise UserError(f"{flag} {path}: {problem}{remedy}") from None
    except SafetensorError as error:
        raise UserError(f"{flag} {path}: the file is damaged ({error}); copy or download it again") from None
    raise UserError(f"{flag} {path}: not a file of plain tensors: {kind}")


def _names(folder: Path) -> list[str]:
    """The names of the files of a folder. Empty if it can't be read."""
    try:
        return [file.name for file in folder.iterdir()]
    except OSError:
        return []


def _kind(head: bytes) -> str:
    """`safetensors`, `torch`, `pickle`, or what else the file is, with the remedy. head: its first bytes."""
    if not head:
        return "it is empty; copy or download it again"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; fetch the file with `git lfs pull`"
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page; download the file itself"
    if head[8:9] == b"{":  # after the length of the header
        return "safetensors"
    if head.startswith((b"PK", LEGACY_HEAD)):
        return "torch"
    if head.startswith(b"\x80"):
        return "pickle"
    return "it is neither safetensors nor written by torch.save; save a state dict, best as .safetensors"


def _read_torch(path: Path, flag: str) -> Any:
    """The content of a file of torch.save. Raises UserError if it can't be read with `weights_only`."""
    refused = f"{flag} {path}: not a file of plain tensors"
    try:
        names = get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # of an old file, a damaged one, or a TorchScript program
        if "torchscript" in str(error).lower():
            remedy = conversion(path, "c.state_dict()", LOAD_SCRIPT)
            raise UserError(f"{refused}: it is a TorchScript program; {remedy}") from None
        names = list(LEGACY_CLASSES)
    stand_ins: list[Any] = [(Ignored if name.startswith(NUMBER_CLASSES) else StandIn, name) for name in names]
    try:
        # torch goes by the ending of a path, so it gets a stream.
        with safe_globals(stand_ins), path.open("rb") as stream:
            return torch.load(stream, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # pickle, zip and the rebuilding of tensors raise errors of their own
        text = str(error) or type(error).__name__
    # torch's message has paragraphs on its options around the reason.
    reason = re.split(r"WeightsUnpickler error: |trusted source\.\n", text)[-1].strip()
    reason = " ".join(re.split(r"\n\n| Please use", reason)[0].split())[:120]
    if "is blocked" in reason:
        remedy = "such a file can run any command, so ask its author for a safetensors file"
    elif "inline_container" in text or "PytorchStreamReader" in text or "EOF" in text or "Ran out of input" in text:
        remedy = "if it should hold weights, copy or download it again"
    else:
        remedy = conversion(path)
    raise UserError(f"{refused} ({reason}); {remedy}")
