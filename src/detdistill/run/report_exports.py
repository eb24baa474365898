"""The exported files that lie in a run folder, with what their records say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detdistill.reporting import Export
from detdistill.run.report_runs import read_json

RECORD = "export.json"
RUNTIMES = {".onnx": "onnxruntime", ".xml": "OpenVINO"}


def exports(folder: Path) -> list[Export]:
    """The exports in a run folder and in the folders directly in it. Each has a record `export.json` beside its file.

    Raises UserError if a record is damaged.
    """
    found = []
    for path in sorted([*folder.glob(RECORD), *folder.glob(f"*/{RECORD}")]):
        record = read_json(path, dict)
        for file in sorted(path.parent.iterdir()):
            if file.suffix in RUNTIMES:
                found.append(_export(file, record))
    return found


def _export(file: Path, record: Mapping[str, Any]) -> Export:
    """What the record says about this file. The latency is a number, or a mapping with a median."""
    latency = record.get("latency_ms")
    if isinstance(latency, Mapping):
        latency = latency.get("median")
    milliseconds = float(latency) if isinstance(latency, int | float) else None
    weights = [path for path in file.parent.glob(f"{file.stem}*") if path.suffix in (file.suffix, ".data", ".bin")]
    size = sum(path.stat().st_size for path in weights)
    return Export(file.name, RUNTIMES[file.suffix], milliseconds, size)
