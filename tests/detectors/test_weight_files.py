"""Weight files of every kind are read without running their code, or refused with one line that says what to do."""

import argparse
import json
import pickle
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from detdistill.detectors.weight_files import is_module, read_content, split_choice
from detdistill.errors import UserError


class Settings(dict):
    """A dictionary of another library, as configurations often are."""


class Point:
    def __init__(self) -> None:
        self.x = 1


class Command:
    """Runs a command of the operating system when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {self.file}",)


class Expression(Command):
    """Runs Python code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.file)!r}, 'w')",)


@pytest.fixture
def state() -> dict[str, Tensor]:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict()


def same(content: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
    return content.keys() == state.keys() and all(torch.equal(content[key], value) for key, value in state.items())


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_content(path, "weights")
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"weights {path}")
    return message


def run_conversion(message: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Run the Python statements of the message, and read the file that they write."""
    assert "if you trust the file" in message
    monkeypatch.chdir(folder)
    exec(message[message.index("import torch;") :], {})
    return read_content(folder / "weights.pt", "weights")


def test_objects_beside_the_tensors_are_replaced_and_their_code_does_not_run(tmp_path: Path, state: dict[str, Tensor]):
    settings, rows = Settings(depth=2), defaultdict(list, a=[1])
    settings.frozen = True
    arguments = argparse.Namespace(lr=0.1, out=tmp_path, point=Point(), score=np.float64(0.5), boxes=np.zeros((2, 4)))
    beside = {"args": arguments, "config": settings, "rows": rows, "code": Expression(tmp_path / "ran"), "epoch": 3}
    torch.save({"model": state, **beside}, tmp_path / "file.pt")
    allowed = set(torch.serialization.get_safe_globals())
    content = read_content(tmp_path / "file.pt", "weights")
    assert same(content["model"], state)
    assert not isinstance(content["args"], argparse.Namespace)
    assert not (tmp_path / "ran").exists()
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_files_from_before_torch_1_6_are_read(tmp_path: Path, state: dict[str, Tensor]):
    content = {"model": state, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "file.pt", _use_new_zipfile_serialization=False)
    assert same(read_content(tmp_path / "file.pt", "weights")["model"], state)


def test_the_kind_of_a_file_does_not_depend_on_its_ending(tmp_path: Path, state: dict[str, Tensor]):
    torch.save(state, tmp_path / "torch.safetensors")
    save_file(state, tmp_path / "safe.pt")
    assert same(read_content(tmp_path / "torch.safetensors", "weights"), state)
    assert same(read_content(tmp_path / "safe.pt", "weights"), state)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_are_read_by_index_by_folder_and_by_one_of_them(tmp_path: Path, state: dict[str, Tensor], ending: str):
    stem, write = ("model", save_file) if ending == "safetensors" else ("pytorch_model", torch.save)
    names = list(state)
    files = [f"{stem}-0000{number}-of-00002.{ending}" for number in (1, 2)]
    for file, part in zip(files, (names[:2], names[2:]), strict=True):
        write({name: state[name] for name in part}, tmp_path / file)
    assert same(read_content(tmp_path, "weights"), state)
    assert same(read_content(tmp_path / files[1], "weights"), state)
    index = tmp_path / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"weight_map": {name: files[name not in names[:2]] for name in names}}))
    assert same(read_content(index, "weights"), state)
    assert same(read_content(tmp_path, "weights"), state)
    (tmp_path / files[1]).unlink()
    with pytest.raises(UserError, match=f"{tmp_path}: 1 of 2 shards are missing, the first is {files[1]}; copy all"):
        read_content(index, "weights")


def test_a_folder_gives_its_whole_file(tmp_path: Path, state: dict[str, Tensor]):
    assert "a folder without weights (model.safetensors, pytorch_model.bin" in refusal(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    assert same(read_content(tmp_path, "weights"), state)


def test_a_whole_module_is_recognized_and_not_built(tmp_path: Path):
    torch.save({"model": nn.Linear(2, 2), "state": nn.Linear(2, 2).state_dict()}, tmp_path / "file.pt")
    content = read_content(tmp_path / "file.pt", "weights")
    assert is_module(content["model"])
    assert not is_module(content["state"])
    assert not is_module(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty; copy or download it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "a pointer of Git LFS; fetch the file with `git lfs pull`",
        ),
        (b"\n<!DOCTYPE html><html></html>", "it is a web page; download the file itself"),
        (b"not a pickle", "neither safetensors nor written by torch.save; save a state dict, best as .safetensors"),
        (b"PK\x03\x04 and no more", "if it should hold weights, copy or download it again"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{broken}", "the file is damaged (.*); copy or download it again"),
    ],
)
def test_what_is_no_weight_file_is_called_by_its_name(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "file.pt").write_bytes(content)
    assert re.search(message, refusal(tmp_path / "file.pt"))


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": "../other.bin"}}'])
def test_an_index_that_names_no_shards_is_refused(tmp_path: Path, content: str):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert re.search("not JSON|its field weight_map", refusal(tmp_path / "model.safetensors.index.json"))


def test_a_missing_file_gives_the_nearest_name(tmp_path: Path, state: dict[str, Tensor]):
    torch.save(state, tmp_path / "teacher.pt")
    assert "can't read the file (No such file or directory); did you mean 'teacher.pt'?" in refusal(
        tmp_path / "teacher.pth"
    )
    assert refusal(tmp_path / "x.json").endswith("check the path and your permissions")


def test_a_file_that_would_run_a_command_is_refused_without_a_conversion(tmp_path: Path, state: dict[str, Tensor]):
    torch.save({"model": state, "x": Command(tmp_path / "ran")}, tmp_path / "file.pt")
    message = refusal(tmp_path / "file.pt")
    assert "posix.system" in message
    assert message.endswith("such a file can run any command, so ask its author for a safetensors file")
    assert not (tmp_path / "ran").exists()


def test_the_statements_of_a_refusal_convert_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    layer = nn.Linear(2, 3)
    file = tmp_path / 'file "1".pt'
    for content in (layer, {"model": layer}):
        torch.save(content, file, _use_new_zipfile_serialization=False)
        assert same(run_conversion(refusal(file), tmp_path, monkeypatch), layer.state_dict())
    arrays = {name: value.numpy() for name, value in layer.state_dict().items()}
    for content in (arrays, {"model": arrays}):
        file.write_bytes(pickle.dumps(content))
        message = refusal(file)
        assert "it is a pickle, which can run any code" in message
        assert same(run_conversion(message, tmp_path, monkeypatch), layer.state_dict())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_torchscript_program_is_converted_by_its_own_statements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    layer = nn.Linear(2, 3)
    torch.jit.trace(layer, torch.ones(1, 2)).save(str(tmp_path / "file.pt"))
    message = refusal(tmp_path / "file.pt")
    assert "it is a TorchScript program" in message
    assert same(run_conversion(message, tmp_path, monkeypatch), layer.state_dict())


def test_a_name_follows_a_number_sign_unless_the_sign_belongs_to_the_file(tmp_path: Path):
    file = tmp_path / "run#1.pt"
    assert split_choice(str(file)) == (file, "")  # it does not exist, and neither does the part before the sign
    file.touch()
    assert split_choice(str(file)) == (file, "")
    assert split_choice(f"{file}#ema") == (file, "ema")
    (tmp_path / "run").touch()
    assert split_choice(f"{tmp_path / 'run'}#ema") == (tmp_path / "run", "ema")
