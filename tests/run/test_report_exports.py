"""Exports in a run folder, as their records describe them."""

import json
from pathlib import Path

import pytest

from detdistill.errors import UserError
from detdistill.run.report_exports import exports


@pytest.mark.parametrize("place", ["", "files"])
def test_an_export_is_found_with_its_record(tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    (folder / "student.onnx").write_bytes(b"12345")
    record = {"format": "onnx", "precision": "int8", "file_ms": 4.5, "bytes": 8}
    (folder / "student.onnx.json").write_text(json.dumps(record))
    (found,) = exports(tmp_path)
    assert (found.name, found.runtime, found.latency_ms, found.bytes) == ("student.onnx (int8)", "onnxruntime", 4.5, 8)


def test_without_a_record_there_is_no_export(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").touch()
    assert exports(tmp_path) == []
    (tmp_path / "a.onnx.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.onnx\.json: can't be read"):
        exports(tmp_path)
