"""The verbs from Python: what they refuse, and what they promise of weights, classes and splits."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import detdistill as dd
from detdistill import run
from detdistill.errors import UserError
from detdistill.recipe import Recipe, merge, parse
from detdistill.run import training
from detdistill.run.folder import RunFolder
from detdistill.run.pairing import resolve
from detdistill.types import DetectorInfo

BASE: dict[str, Any] = {
    "model": {
        "name": "gfl:mobilenetv3_small_050",
        "strides": [8, 16, 32],
        "channels": 32,
        "tower_depth": 2,
        "backbone_weights": "none",
    },
    "data": {"path": "shapes:8", "image_size": 64},
    "train": {"batch_size": 4, "max_steps": 1, "device": "cpu"},
}


def recipe(**over: Any) -> Recipe:
    return parse(merge(BASE, over), "test")


def taught(teacher: Path, *methods: str, **options: Any) -> Recipe:
    return recipe(teacher={"path": str(teacher), **options}, methods={name: {} for name in methods})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run.train(recipe(), tmp_path_factory.mktemp("runs") / "teacher").out


@pytest.fixture
def stranger(teacher: Path, tmp_path: Path) -> Path:
    """The same weights, with one class called otherwise."""
    copy = tmp_path / "stranger"
    shutil.copytree(teacher, copy)
    card = json.loads((copy / "model.json").read_text())
    card["classes"][0] = "ring"
    (copy / "model.json").write_text(json.dumps(card))
    return copy


def test_a_loaded_detector_is_the_saved_one(teacher: Path) -> None:
    loaded, saved = dd.load(teacher), load_file(teacher / "model.safetensors")
    state = loaded.state_dict()
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[name], saved[name]) for name in saved)
    assert not loaded.training  # type: ignore[attr-defined]


def test_build_takes_the_fields_of_the_model_and_no_others() -> None:
    built = dd.build(
        "gfl:mobilenetv3_small_050",
        ["a", "b"],
        channels=32,
        tower_depth=1,
        strides=(8, 16, 32),
        backbone_weights="none",
    )
    assert (built.info.classes, built.info.strides, built.info.towers.depth) == (("a", "b"), (8, 16, 32), 1)
    with pytest.raises(UserError, match="did you mean 'channels'"):
        dd.build("gfl:mobilenetv3_small_050", ["a"], chanels=32)


def test_a_seed_is_a_detector(teacher: Path, tmp_path: Path) -> None:
    torch.rand(3)  # whatever was drawn before
    again = run.train(recipe(), tmp_path / "again").out
    other = run.train(recipe(train={"seed": 1}), tmp_path / "other").out
    weights = [(folder / "model.safetensors").read_bytes() for folder in (teacher, again, other)]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize("harm", ["missing", "extra", "shape", "cut", "gone"])
def test_weights_that_do_not_fit_are_refused(teacher: Path, tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "harmed"
    shutil.copytree(teacher, folder)
    path = folder / "model.safetensors"
    state = load_file(path)
    first = next(name for name in state if name.endswith("weight"))
    if harm == "missing":
        save_file({name: value for name, value in state.items() if name != first}, path)
    elif harm == "extra":
        save_file({**state, "surplus": torch.zeros(1)}, path)
    elif harm == "shape":
        save_file({**state, first: torch.zeros(1, 2, 3, 4, 5)}, path)
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.unlink()
    with pytest.raises(UserError, match=r"harmed/model\.safetensors") as caught:
        dd.load(folder)
    assert "\n" not in str(caught.value)


def test_a_weak_teacher_stops_the_run_only_where_its_predictions_are_read(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"teacher\.floor"):
        run.distill(taught(teacher, "crosskd", floor=100), out)
    assert not out.exists()
    run.distill(taught(teacher, "crosskd", floor=100, allow_weak=True), out)
    run.distill(taught(teacher, "pkd", floor=100), tmp_path / "features")


def test_the_teacher_is_measured_before_the_first_step_and_not_on_the_test_split(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    measure, fit = training.measure, training.fit

    def measured(detector: Any, data: Any, split: Any, *rest: Any, **more: Any) -> Any:
        events.append(f"measure {split.name} {len(split)}")
        return measure(detector, data, split, *rest, **more)

    def fitted(*arguments: Any, **keywords: Any) -> Any:
        events.append("fit")
        return fit(*arguments, **keywords)

    monkeypatch.setattr(training, "measure", measured)
    monkeypatch.setattr(training, "fit", fitted)
    run.distill(taught(teacher, "pkd", sample=1), tmp_path / "out")
    assert events == ["measure val 1", "fit", "measure test 2"]


def test_classes_are_mapped_by_name_and_where_none_is_shared_only_features_teach(
    stranger: Path, tmp_path: Path
) -> None:
    console = Console(record=True, width=200)
    run.distill(taught(stranger, "pkd", "crosskd"), tmp_path / "out", console=console)  # all but one class are shared
    assert "not measured" in console.export_text()
    card = json.loads((stranger / "model.json").read_text())
    card["classes"] = [f"no {name}" for name in card["classes"]]
    (stranger / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="no class in common"):
        run.distill(taught(stranger, "pkd", "crosskd"), tmp_path / "other")


def test_a_model_is_measured_on_its_own_classes(stranger: Path, teacher: Path) -> None:
    with pytest.raises(UserError, match="ring"):
        dd.evaluate(str(stranger), "shapes:8")
    assert dd.evaluate(dd.load(teacher), Recipe(**BASE).data)["AP"] == RunFolder(teacher).metrics()["AP"]


def test_training_goes_on_from_a_run_folder(teacher: Path, stranger: Path, tmp_path: Path) -> None:
    follow = recipe(model={"name": str(teacher)}, train={"lr": 1e-12, "weight_decay": 0.0})
    out = run.train(follow, tmp_path / "on").out
    before, after = load_file(teacher / "model.safetensors"), load_file(out / "model.safetensors")
    learned = [name for name in before if name.endswith("weight")]
    assert learned
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in learned)
    assert RunFolder(out).card().model.name == "gfl:mobilenetv3_small_050"
    with pytest.raises(UserError, match="ring"):
        run.train(recipe(model={"name": str(stranger)}), tmp_path / "strange")
    with pytest.raises(UserError, match="not the weights of"):
        run.train(recipe(model={"name": str(teacher), "channels": 64}), tmp_path / "wide")


def test_options_go_over_presets_and_presets_over_defaults(teacher: Path) -> None:
    gfl: DetectorInfo = dd.load(teacher).info
    plain = resolve({"crosskd": {}, "pkd": {}}, gfl, gfl)
    assert plain["crosskd"]["weight_box"] == 4.0  # GFL's preset; the default is 1
    assert plain["crosskd"]["align"] is True  # a default
    mine = resolve({"crosskd": {"weight_box": 2, "student_depth": "none"}}, gfl, gfl)["crosskd"]
    assert (mine["weight_box"], mine["student_depth"]) == (2.0, None)
    assert resolve(plain, gfl, gfl) == plain  # a resolved recipe stays what it is


def test_the_verbs_keep_to_their_own(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="detdistill distill"):
        run.train(taught(teacher, "pkd"), tmp_path / "out")
    with pytest.raises(UserError, match="detdistill train"):
        run.distill(recipe(), tmp_path / "out")


def test_no_split_to_measure_on_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "fit", lambda *arguments, **keywords: pytest.fail("it trained"))
    with pytest.raises(UserError, match="'tset'"):
        run.train(recipe(data={"eval_split": "tset"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
