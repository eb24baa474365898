"""Trackers: what they are told, how they continue a run, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from accelerate.tracking import GeneralTracker
from rich.console import Console

from detdistill.engine import trackers
from detdistill.engine.fit import fit
from detdistill.engine.trackers import FINAL, Trackers, check_trackers
from detdistill.errors import UserError

from .fakes import FakeLoader, fake_distillation, fake_teacher, log_rows, train_config


class Recorder(GeneralTracker):
    """Records its calls. name: of the tracker that it stands for."""

    requires_logging_directory = False

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__()
        self.settings: dict[str, Any] = {}
        self.rows: list[tuple[int | None, dict[str, float]]] = []
        self.finished = False

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict) -> None:
        self.settings |= values

    def log(self, values: dict, step: int | None = None, **rest: Any) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Recorder, int, str | None]]:
    """The recorders that stand for wandb and mlflow, with the step and the earlier id that each was started with."""
    PartialState()
    calls: list[tuple[Recorder, int, str | None]] = []

    def start(name: str) -> Any:
        def tracker(out: Path, step: int, id: str | None) -> tuple[Recorder, str]:
            calls.append((Recorder(name), step, id))
            return calls[-1][0], id or f"{name}-1"

        return tracker

    monkeypatch.setattr(trackers, "START", {name: start(name) for name in ("wandb", "mlflow")})
    return calls


def train(out: Path, *names: str, resume: bool = False, **changes: Any) -> None:
    config = train_config(trackers=names, **changes)
    quiet = Console(quiet=True)
    fit(fake_distillation(), FakeLoader(), teacher=fake_teacher(), config=config, out=out, resume=resume, console=quiet)


def test_trackers_get_the_rows_of_the_log_and_continue_their_run(tmp_path: Path, started: list) -> None:
    train(tmp_path, "wandb", "mlflow", max_steps=7)
    train(tmp_path, "wandb", "mlflow", resume=True)
    assert [(tracker.name, step, id) for tracker, step, id in started] == [
        ("wandb", 0, None),
        ("mlflow", 0, None),
        ("wandb", 7, "wandb-1"),
        ("mlflow", 7, "mlflow-1"),
    ]
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": "wandb-1", "mlflow": "mlflow-1"}
    first, continued = started[0][0], started[2][0]
    assert first.finished and continued.finished
    assert [step for step, _ in first.rows] == [1, 3, 6, 7]
    assert [step for step, _ in continued.rows] == [9, 12, 15]
    for (step, values), row in zip(continued.rows, log_rows(tmp_path)[3:], strict=True):
        assert step == row["step"]
        assert {f"train/{name}": value for name, value in row.items()}.items() <= values.items()
    assert first.settings["train.lr"] == "0.01"
    assert continued.settings == {}  # MLflow refuses to change a setting of a run


def test_only_finite_numbers_are_shown_and_final_metrics_of_wandb_have_no_step(tmp_path: Path, started: list) -> None:
    with Trackers(("wandb", "mlflow"), tmp_path, 9) as opened:
        opened.log({"AP": 12.5, "APs": None, "AP50": float("nan"), "per_class": {"cat": 1.0}}, 9, FINAL)
    rows = [tracker.rows for tracker, _, _ in started]
    assert rows == [[(None, {"metrics/AP": 12.5})], [(9, {"metrics/AP": 12.5})]]


def test_a_process_that_does_not_write_has_no_tracker(started: list) -> None:
    with Trackers(("wandb",), None) as opened:
        opened.log({"AP": 1.0}, 1, "train")
    assert started == []


def test_a_tracker_that_can_not_start_is_named_and_the_others_end(
    tmp_path: Path, started: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("no API key\nconfigured")

    monkeypatch.setitem(trackers.START, "mlflow", fail)
    message = (
        r"^--train\.trackers mlflow: it can't start \(no API key configured\); log in or set it up, or leave it out$"
    )
    with pytest.raises(UserError, match=message):
        Trackers(("wandb", "mlflow"), tmp_path)
    assert started[0][0].finished


def test_a_missing_package_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"--train\.trackers wandb: the package is not installed; run `pip install wandb`"
    ):
        check_trackers(("wandb",))
    check_trackers(())
    monkeypatch.setattr(trackers, "find_spec", lambda name: name == "tensorboardX")
    check_trackers(("tensorboard",))


def test_tensorboard_shows_each_step_once_after_a_resumption(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path, "tensorboard", max_steps=7)
    train(tmp_path, "tensorboard", resume=True)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/total")] == [1, 3, 6, 7, 9, 12, 15]
