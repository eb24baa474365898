"""The demo: three runs, a table and a picture."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.commands import DATA, detdistill

from .recipes import read_json


def first_log_row(run: Path) -> dict:
    """The first row of log.jsonl."""
    return json.loads((run / "log.jsonl").read_text().splitlines()[0])


def test_the_demo_trains_three_detectors_and_keeps_finished_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "demo"
    command = f"demo {DATA} --max-steps 1 --out {out}"
    assert detdistill(command) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("teacher", "plain", "distilled", "docs/results.md", "one seed"))
    assert [row["name"] for row in read_json(out / "table.json")["rows"]] == ["teacher", "plain", "distilled"]
    with Image.open(out / "detections.png") as picture:
        assert picture.width % 3 == 0
    # Both students have the same seed, so the same first weights and the same first batch.
    plain, distilled = first_log_row(out / "plain"), first_log_row(out / "distilled")
    task_terms = [name for name in plain if name.startswith("task_")]
    assert {name: distilled[name] for name in task_terms} == {name: plain[name] for name in task_terms}
    weights = out / "teacher/model.safetensors"
    before = weights.stat().st_mtime_ns
    assert detdistill(command) == 2
    assert detdistill(f"{command} --resume") == 0
    assert weights.stat().st_mtime_ns == before
