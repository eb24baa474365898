"""A checkpoint is whole, safe to read, and of one run."""

from pathlib import Path

import pytest
import torch

from detdistill.engine.checkpoint import Training, checkpoint_path, load_checkpoint, save_checkpoint
from detdistill.engine.optim import build_optimizer, moving_average
from detdistill.errors import UserError

from .fakes import config, distillation

RUN = {"train": {"lr": 0.1, "milestones": (0.5, 0.9)}, "data": {"path": Path("photos")}, "processes": 1}


def training(seed: int = 0, **student: object) -> Training:
    whole = distillation(seed=seed, **student)
    optimizer = build_optimizer(whole, config())
    sum(parameter.square().sum() for parameter in whole.parameters()).backward()
    optimizer.step()
    return Training(whole, optimizer, moving_average(whole.student, 0.9), None, step=7, images=28, seconds=1.5)


def test_round_trip_to_the_bit(tmp_path: Path) -> None:
    saved, fresh = training(0), training(1)
    save_checkpoint(saved, RUN, tmp_path)
    fresh.step = 0
    load_checkpoint(fresh, RUN, tmp_path)
    assert (fresh.step, fresh.images, fresh.seconds) == (7, 28, 1.5)
    for part in ("distillation", "optimizer", "average"):
        torch.testing.assert_close(getattr(fresh, part).state_dict(), getattr(saved, part).state_dict(), rtol=0, atol=0)
    assert [file.name for file in (tmp_path / "checkpoint").iterdir()] == ["state.pt"]


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({**RUN, "train": {"lr": 0.2, "milestones": [0.5, 0.9]}}, r"train\.lr was 0\.1 and is 0\.2"),
        ({**RUN, "methods": {"pkd": {"weight": 1}}}, r"methods\.pkd\.weight was None and is 1"),
        ({"train": RUN["train"], "processes": 1}, r"data\.path was 'photos' and is None"),
    ],
)
def test_another_run_is_refused_by_name(tmp_path: Path, now: dict, message: str) -> None:
    save_checkpoint(training(), RUN, tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(training(), now, tmp_path)
    assert "state.pt: can't resume" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_model_is_refused(tmp_path: Path) -> None:
    save_checkpoint(training(), RUN, tmp_path)
    with pytest.raises(UserError, match="of another model") as caught:
        load_checkpoint(training(norm=False), RUN, tmp_path)
    assert "\n" not in str(caught.value)


def test_no_checkpoint_and_a_broken_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint to resume"):
        load_checkpoint(training(), RUN, tmp_path)
    save_checkpoint(training(), RUN, tmp_path)
    whole = checkpoint_path(tmp_path).read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"no such thing"):
        checkpoint_path(tmp_path).write_bytes(broken)
        with pytest.raises(UserError, match="not a checkpoint that can be read") as caught:
            load_checkpoint(training(), RUN, tmp_path)
        assert "\n" not in str(caught.value)


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(training(), RUN, tmp_path)
    whole = checkpoint_path(tmp_path).read_bytes()

    def fail(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(training(1), RUN, tmp_path)
    assert checkpoint_path(tmp_path).read_bytes() == whole
    assert [file.name for file in (tmp_path / "checkpoint").iterdir()] == ["state.pt"]
