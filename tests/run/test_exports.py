"""The export of a run folder. `tests/exporting` compares the exported models."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from detdistill import run
from detdistill.errors import UserError
from detdistill.exporting import transformers


def test_the_exporter_gets_the_detector_and_its_image_size(
    teacher_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    def record(detector: Any, out: Path, size: tuple[int, int], *, overwrite: bool) -> None:
        calls.append((detector.info.kind, out, size, overwrite))

    monkeypatch.setattr(transformers, "export", record)
    console = Console(record=True, width=400)
    assert run.export(teacher_run, tmp_path / "out", overwrite=True, console=console) == tmp_path / "out"
    assert calls == [("gfl", tmp_path / "out", (64, 64), True)]
    assert f"its boxes equal those of {teacher_run} on images of 64 x 64" in console.export_text()


def test_a_wrong_export_is_refused_and_nothing_is_written(teacher_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="not a run folder"):
        run.export(tmp_path / "nowhere", out)
    with pytest.raises(UserError, match="--format 'tflite': choose one of onnx, openvino, torch, transformers"):
        run.export(teacher_run, out, format="tflite")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="gfl is not a detector of transformers"):
        run.export(teacher_run, out)
    assert list(tmp_path.iterdir()) == []
