"""Exports in a run folder, as their records describe them."""

import json
from pathlib import Path

import pytest

from detdistill.errors import UserError
from detdistill.run.report_exports import exports


@pytest.mark.parametrize("place", ["", "onnx"])
def test_an_export_is_found_with_its_record(tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    (folder / "student.onnx").write_bytes(b"12345")
    (folder / "student.onnx.data").write_bytes(b"123")
    (folder / "export.json").write_text(json.dumps({"latency_ms": 4.5}))
    (found,) = exports(tmp_path)
    assert (found.name, found.runtime, found.latency_ms, found.bytes) == ("student.onnx", "onnxruntime", 4.5, 8)


@pytest.mark.parametrize(("record", "expected"), [({}, None), ({"latency_ms": {"median": 2}}, 2.0)])
def test_a_latency_may_be_unknown_or_a_median(tmp_path: Path, record: dict, expected: float | None) -> None:
    (tmp_path / "a.onnx").touch()
    (tmp_path / "export.json").write_text(json.dumps(record))
    assert exports(tmp_path)[0].latency_ms == expected


def test_without_a_record_there_is_no_export(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").touch()
    assert exports(tmp_path) == []
    (tmp_path / "export.json").write_text("{")
    with pytest.raises(UserError, match=r"export\.json: can't be read"):
        exports(tmp_path)
