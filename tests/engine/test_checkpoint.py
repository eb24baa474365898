"""A checkpoint holds the whole state of one run, and is loaded without executing code."""

from pathlib import Path

import pytest
import torch

from detdistill.engine.checkpoint import Training, checkpoint_path, load_checkpoint, save_checkpoint
from detdistill.engine.optim import build_optimizer, moving_average
from detdistill.errors import UserError

from .fakes import fake_distillation, train_config

SETTINGS = {"train": {"lr": 0.1, "milestones": (0.5, 0.9)}, "data": {"path": Path("photos")}, "processes": 1}


def training_after_a_step(seed: int = 0, **student: object) -> Training:
    """The state of a run whose optimizer has done a step."""
    distillation = fake_distillation(seed=seed, **student)
    optimizer = build_optimizer(distillation, train_config())
    sum(parameter.square().sum() for parameter in distillation.parameters()).backward()
    optimizer.step()
    average = moving_average(distillation.student, 0.9)
    return Training(distillation, optimizer, average, None, step=7, images=28, seconds=1.5)


def test_a_loaded_checkpoint_equals_the_saved_state_bit_for_bit(tmp_path: Path) -> None:
    saved = training_after_a_step(0)
    loaded = training_after_a_step(1)
    save_checkpoint(saved, SETTINGS, tmp_path)
    loaded.step = 0
    load_checkpoint(loaded, SETTINGS, tmp_path)
    assert (loaded.step, loaded.images, loaded.seconds) == (7, 28, 1.5)
    for part in ("distillation", "optimizer", "average"):
        actual, expected = getattr(loaded, part).state_dict(), getattr(saved, part).state_dict()
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert [file.name for file in (tmp_path / "checkpoint").iterdir()] == ["state.pt"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**SETTINGS, "train": {"lr": 0.2, "milestones": [0.5, 0.9]}}, r"train\.lr was 0\.1 and is 0\.2"),
        ({**SETTINGS, "methods": {"pkd": {"weight": 1}}}, r"methods\.pkd\.weight was None and is 1"),
        ({"train": SETTINGS["train"], "processes": 1}, r"data\.path was 'photos' and is None"),
    ],
)
def test_other_settings_are_refused_with_the_changed_field(tmp_path: Path, settings: dict, message: str) -> None:
    save_checkpoint(training_after_a_step(), SETTINGS, tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(training_after_a_step(), settings, tmp_path)
    assert "state.pt: can't resume" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    save_checkpoint(training_after_a_step(), SETTINGS, tmp_path)
    with pytest.raises(UserError, match="belongs to another model") as caught:
        load_checkpoint(training_after_a_step(norm=False), SETTINGS, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_and_a_damaged_checkpoint_have_different_messages(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint to resume"):
        load_checkpoint(training_after_a_step(), SETTINGS, tmp_path)
    save_checkpoint(training_after_a_step(), SETTINGS, tmp_path)
    content = checkpoint_path(tmp_path).read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no such thing"):
        checkpoint_path(tmp_path).write_bytes(damaged)
        with pytest.raises(UserError, match="the checkpoint can't be read") as caught:
            load_checkpoint(training_after_a_step(), SETTINGS, tmp_path)
        assert "\n" not in str(caught.value)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(training_after_a_step(), SETTINGS, tmp_path)
    content = checkpoint_path(tmp_path).read_bytes()

    def fail(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(training_after_a_step(1), SETTINGS, tmp_path)
    assert checkpoint_path(tmp_path).read_bytes() == content
    assert [file.name for file in (tmp_path / "checkpoint").iterdir()] == ["state.pt"]
