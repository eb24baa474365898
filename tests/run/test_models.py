"""Detectors that are built, loaded from a run folder, or trained further."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import detdistill as dd
from detdistill import run
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig, load
from detdistill.run.folder import ModelCard, RunFolder
from detdistill.run.models import adopt, find, find_detector, start

from .recipes import MODEL, read_json, small_recipe


def test_build_accepts_the_fields_of_the_model_only() -> None:
    sizes = {"channels": 32, "tower_depth": 1, "strides": (8, 16, 32)}
    detector = dd.build(MODEL, ["a", "b"], backbone_weights="none", **sizes)
    assert (detector.info.classes, detector.info.strides, detector.info.towers.depth) == (("a", "b"), (8, 16, 32), 1)
    with pytest.raises(UserError, match="did you mean 'channels'"):
        dd.build(MODEL, ["a"], chanels=32)


def test_a_loaded_detector_has_the_saved_weights_and_is_in_evaluation_mode(teacher_run: Path) -> None:
    detector = dd.load(teacher_run)
    saved = load_file(teacher_run / "model.safetensors")
    state = detector.state_dict()
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[name], saved[name]) for name in saved)
    assert not detector.training


def test_a_run_of_the_small_recipe_keeps_neck_and_convolutions_in_model_json(tmp_path: Path) -> None:
    over = {
        "model": {"backbone_weights": "none"},
        "data": {"path": "shapes:4", "image_size": 64},
        "train": {"batch_size": 4, "max_steps": 1, "device": "cpu"},
    }
    folder = run.train(load("small", over), tmp_path / "small").out
    card = RunFolder(folder).card()
    assert (card.model.neck, card.model.depthwise) == ("pafpn", True)
    saved = load_file(folder / "model.safetensors")
    assert any(".down_blocks.0.depthwise." in name for name in saved)
    assert dd.load(folder).state_dict().keys() == saved.keys()
    assert read_json(folder / "metrics.json")["params"] < 0.46e6


def test_an_old_model_json_without_these_fields_is_an_fpn_of_plain_convolutions(
    teacher_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "old"
    shutil.copytree(teacher_run, folder)
    content = read_json(folder / "model.json")
    for field in ("neck", "depthwise"):
        del content["model"][field]
    (folder / "model.json").write_text(json.dumps(content))
    old, new = dd.load(folder).state_dict(), dd.load(teacher_run).state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in new)


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "cut", "deleted"])
def test_weights_that_do_not_fit_are_refused(teacher_run: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(teacher_run, folder)
    path = folder / "model.safetensors"
    state = load_file(path)
    first = next(name for name in state if name.endswith("weight"))
    if damage == "missing":
        save_file({name: value for name, value in state.items() if name != first}, path)
    elif damage == "extra":
        save_file({**state, "surplus": torch.zeros(1)}, path)
    elif damage == "shape":
        save_file({**state, first: torch.zeros(1, 2, 3, 4, 5)}, path)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.unlink()
    with pytest.raises(UserError, match=r"damaged/model\.safetensors") as caught:
        dd.load(folder)
    assert "\n" not in str(caught.value)


def test_training_continues_from_the_weights_of_a_run_folder(
    teacher_run: Path, run_with_other_class: Path, tmp_path: Path
) -> None:
    recipe = small_recipe(model={"name": str(teacher_run)}, train={"lr": 1e-12, "weight_decay": 0.0})
    out = run.train(recipe, tmp_path / "continued").out
    before = load_file(teacher_run / "model.safetensors")
    after = load_file(out / "model.safetensors")
    weights = [name for name in before if name.endswith("weight")]
    assert weights
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in weights)
    assert RunFolder(out).card().model.name == MODEL
    with pytest.raises(UserError, match="ring"):
        run.train(small_recipe(model={"name": str(run_with_other_class)}), tmp_path / "other_classes")
    with pytest.raises(UserError, match="do not match the architecture of"):
        run.train(small_recipe(model={"name": str(teacher_run), "channels": 64}), tmp_path / "wide")


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a run folder with a trained model: it has no model\.json"):
        find(str(tmp_path), ("a",))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"if transformers wrote it, give hf:{tmp_path}"):
        find(str(tmp_path), ("a",))


def test_a_model_that_gives_features_only_is_refused_as_a_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = SimpleNamespace(info=SimpleNamespace(classes=()))
    monkeypatch.setattr("detdistill.run.models.load_teacher", lambda *arguments: (detector, "report"))
    with pytest.raises(UserError, match="--model timm:vit: it only gives features and detects nothing"):
        find_detector("timm:vit", ())


def test_a_set_option_leaves_the_other_options_of_a_run_folder_as_they_are(tmp_path: Path) -> None:
    saved = ModelConfig(name="adamixer:resnet18", channels=64, options={"groups": 2, "heads": 4})
    card = ModelCard(model=saved, classes=("disc",), category_ids=(1,), image_size=64)
    (tmp_path / "model.json").write_text(card.model_dump_json())
    adopted = adopt(ModelConfig(name=str(tmp_path), options={"groups": 8}))
    assert (adopted.channels, adopted.options) == (64, {"groups": 8, "heads": 4})


def test_what_is_frozen_stays_frozen_when_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "backbone.safetensors"
    save_file(timm.create_model("mobilenetv3_small_050").state_dict(), weights)
    frozen = {"backbone_weights": str(weights), "freeze_norms": True, "freeze_stages": 1}
    first = run.train(small_recipe(model=frozen), tmp_path / "first").out
    # Its backbone's weights come from the run, whatever the flag says, and its card still says where they came from.
    monkeypatch.setattr("detdistill.run.training.printer", lambda console: notes.append)
    notes: list[str] = []
    model = {"name": str(first), "backbone_weights": "none"}
    second = run.train(small_recipe(model=model), tmp_path / "second").out
    assert f"note: model.backbone_weights none has no effect: training goes on from {first}" in notes
    third = run.train(
        small_recipe(model={"name": str(first), "freeze_norms": False, "freeze_stages": 0}), tmp_path / "3"
    ).out
    for folder, norms, stages in ((first, True, 1), (second, True, 1), (third, False, 0)):
        model = RunFolder(folder).card().model
        assert (model.backbone_weights, model.freeze_norms, model.freeze_stages) == (str(weights), norms, stages)
    before = load_file(first / "model.safetensors")
    changed = {}
    for folder in (second, third):
        after = load_file(folder / "model.safetensors")
        changed[folder] = {name for name in before if not torch.equal(before[name], after[name])}
    stem, later = "neck.body.conv_stem.weight", "neck.body.blocks.1.0.conv_pw.weight"
    norm = "neck.body.blocks.5.0.bn1.running_mean"
    assert changed[second] & {stem, later, norm} == {later}
    assert changed[third] >= {stem, later, norm}


@pytest.mark.parametrize(
    ("name", "weights", "norms"),
    [
        ("gfl:resnet18", "default", False),
        ("adamixer:resnet18", "default", True),
        ("adamixer:resnet18", "none", False),
    ],
)
def test_a_card_from_before_the_fields_existed_keeps_what_its_run_froze(
    name: str, weights: str, norms: bool, tmp_path: Path
) -> None:
    saved = ModelConfig(name=name, backbone_weights=weights)
    card = ModelCard(model=saved, classes=("disc",), category_ids=(1,), image_size=64).model_dump(mode="json")
    del card["model"]["freeze_norms"], card["model"]["freeze_stages"]
    (tmp_path / "model.json").write_text(json.dumps(card))
    for model in (RunFolder(tmp_path).card().model, adopt(ModelConfig(name=str(tmp_path)))):
        assert (model.freeze_norms, model.freeze_stages) == (norms, 0)


def test_random_weights_are_not_frozen_in_a_new_model() -> None:
    model = ModelConfig(name=MODEL, backbone_weights="none", freeze_stages=1)
    with pytest.raises(UserError, match=r"model\.freeze_stages 1: the backbone starts from random weights"):
        start(model, ("disc",), 0, print)


def test_a_field_that_the_head_does_not_read_is_named() -> None:
    notes: list[str] = []
    model = ModelConfig(
        name="faster_rcnn:mobilenetv2_035", channels=32, rois=16, tower_depth=2, backbone_weights="none"
    )
    start(model, ("disc",), 0, notes.append)
    assert notes == ["note: model.tower_depth 2 has no effect, because faster_rcnn does not read it"]


def test_a_damaged_file_of_weights_is_called_damaged(teacher_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(teacher_run, tmp_path / "run")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors: the file is damaged .*; copy it again"):
        dd.load(folder)


def test_a_damaged_card_is_called_no_json(teacher_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(teacher_run, tmp_path / "run")
    (folder / "model.json").write_bytes(b"\0\0")
    with pytest.raises(UserError, match=r"model\.json: not a JSON file .*; copy it again"):
        dd.load(folder)
