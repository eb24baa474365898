"""The exported files that lie in a run folder, with what their records say."""

from pathlib import Path

from detdistill.exporting import SUFFIXES
from detdistill.reporting import Export
from detdistill.run.exports import record_path
from detdistill.run.report_runs import read_json

RUNTIMES = {"onnx": "onnxruntime", "openvino": "OpenVINO", "torch": "PyTorch"}


def exports(folder: Path) -> list[Export]:
    """The exported files in a run folder and in the folders directly in it that have a record of their comparison.

    Raises UserError if a record is damaged.
    """
    formats = {suffix: name for name, suffix in SUFFIXES.items()}
    found = []
    for file in sorted(path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.suffix in formats):
        if record_path(file).exists():
            record = read_json(record_path(file), dict)
            milliseconds, size = record.get("file_ms"), record.get("bytes", file.stat().st_size)
            name = f"{file.name} ({record.get('precision', 'fp32')})"
            found.append(Export(name, RUNTIMES[formats[file.suffix]], milliseconds, size))
    return found
