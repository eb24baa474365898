"""Of a file with nested state dicts, prefixes and averages, the model's tensors are taken, and the note says so."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from detdistill.detectors.weight_names import Weights, read_weights, renamed
from detdistill.errors import UserError


def network(seed: int, width: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    layers = {"body": nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width)), "head": nn.Linear(width, 2)}
    return nn.ModuleDict(layers)


MODEL = network(0)
STATE = dict(MODEL.state_dict())
OTHER = dict(network(1).state_dict())


def under(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def read(tmp_path: Path, content: Any, choice: str = "") -> Weights:
    """Write the content and read the weights of MODEL from it."""
    torch.save(content, tmp_path / "file.pt")
    return read_weights(f"{tmp_path / 'file.pt'}{choice}", "weights", STATE)


def is_state(weights: Weights, state: dict[str, Tensor] = STATE) -> bool:
    return weights.state.keys() == state.keys() and all(
        torch.equal(weights.state[name], tensor) for name, tensor in state.items()
    )


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"model": STATE, "optimizer": torch.optim.SGD(MODEL.parameters(), 0.1, momentum=0.9).state_dict(), "epoch": 3},
        {"state_dict": STATE, "best": torch.tensor(0.3)},
        {"checkpoint": {"model_state_dict": STATE}},
        {"checkpoint": {"net": {"weights": STATE}}},
        {"module": STATE},
        {"params": STATE, "model": None},
    ],
)
def test_a_nested_state_dict_is_found_without_a_note(tmp_path: Path, content: Any):
    weights = read(tmp_path, content)
    assert is_state(weights)
    assert not weights.note


@pytest.mark.parametrize("prefix", ["module.", "model.", "student.", "module.model.", "model.student.module.", "a.b."])
def test_a_prefix_is_stripped_and_told(tmp_path: Path, prefix: str):
    weights = read(tmp_path, {"state_dict": under(prefix)})
    assert is_state(weights)
    assert weights.note == f"stripped the prefix {prefix!r}"


def test_the_part_of_a_name_that_torch_compile_adds_is_removed_anywhere(tmp_path: Path):
    compiled = {name.replace("body.", "body._orig_mod."): tensor for name, tensor in under("_orig_mod.module.").items()}
    weights = read(tmp_path, compiled)
    assert is_state(weights)
    assert weights.note == "removed '_orig_mod.' from the names; stripped the prefix 'module.'"


def test_tensors_without_the_prefix_are_left_out_and_told(tmp_path: Path):
    weights = read(tmp_path, {**under("model."), "loss.weight": torch.ones(2)})
    assert is_state(weights)
    assert weights.note == "stripped the prefix 'model.'; left out 1 tensor without it, such as 'loss.weight'"


def test_tensors_beside_names_without_a_prefix_are_kept_for_the_strict_check(tmp_path: Path):
    assert read(tmp_path, {**STATE, "extra": torch.ones(2)}).state.keys() == STATE.keys() | {"extra"}


@pytest.mark.parametrize(
    ("content", "average", "other"),
    [
        ({"model": OTHER, "ema": STATE}, "ema", "model"),
        ({"model": OTHER, "ema": {"module": STATE, "updates": 3}}, "ema.module", "model"),
        ({"state_dict": OTHER, "state_dict_ema": STATE}, "state_dict_ema", "state_dict"),
        ({"model": OTHER, "model_ema": AveragedModel(MODEL).state_dict()}, "model_ema.module", "model"),
        ({**under("model.", OTHER), **under("ema_model.module.")}, "ema_model.module", "model"),
        # MMEngine exchanges the two before it saves.
        ({"state_dict": STATE, "ema_state_dict": OTHER, "message_hub": {}}, "state_dict", "ema_state_dict"),
    ],
)
def test_of_weights_and_their_average_the_average_is_taken_unless_chosen(
    tmp_path: Path, content: Any, average: str, other: str
):
    weights = read(tmp_path, content)
    assert is_state(weights)
    assert weights.note.startswith(
        f"took the moving average ({average}); {tmp_path / 'file.pt'}#{other} takes the other"
    )
    assert is_state(read(tmp_path, content, f"#{other}"), OTHER)
    for choice in (average, "ema"):
        chosen = read(tmp_path, content, f"#{choice}")
        assert is_state(chosen)
        assert "took" not in chosen.note


def test_an_average_of_parameters_only_is_not_taken(tmp_path: Path):
    parameters = {name: tensor for name, tensor in OTHER.items() if "running" not in name}
    weights = read(tmp_path, {"model": STATE, "ema": parameters})
    assert is_state(weights)
    assert weights.note.startswith("took the weights (model), because ema lacks 2 tensors; ")


def test_of_a_student_and_a_larger_teacher_the_one_that_fits_is_taken(tmp_path: Path):
    teacher = under("teacher.", dict(network(2, width=5).state_dict()))
    for content in ({**teacher, **under("student.")}, {**under("student."), **teacher}):
        weights = read(tmp_path, content)
        assert is_state(weights)
        assert weights.note.startswith("stripped the prefix 'student.'; left out 9 tensors without it")
    weights = read(tmp_path, {"teacher": teacher, "student": STATE})
    assert is_state(weights)
    assert weights.note == f"took the weights (student); {tmp_path / 'file.pt'}#teacher.teacher takes the other"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("#emma", r"has no weights under 'emma'; did you mean 'ema'\? \(it has model, ema.module\)"),
        ("#optimizer", r"has no weights under 'optimizer' \(it has model, ema.module\)"),
    ],
)
def test_an_unknown_choice_lists_what_there_is(tmp_path: Path, choice: str, message: str):
    with pytest.raises(UserError, match=f"^weights {tmp_path / 'file.pt'}: {message}$"):
        read(tmp_path, {"model": OTHER, "ema": {"module": STATE}}, choice)


def test_the_average_of_a_file_without_one_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"has no weights under 'ema' \(it has model\)"):
        read(tmp_path, {"model": STATE}, "#ema")


def test_flags_of_the_training_script_are_kept(tmp_path: Path):
    for arguments in (argparse.Namespace(weights=None, lr=0.1), {"weights": None, "lr": 0.1}):
        assert read(tmp_path, {"model": STATE, "args": arguments}).arguments == {"weights": None, "lr": 0.1}
    assert not read(tmp_path, {"model": STATE}).arguments


@pytest.mark.parametrize("content", [[STATE], torch.ones(2), {"model": None}, {"epoch": 3}, {}])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: Any):
    with pytest.raises(UserError, match=r"^weights .*file.pt: holds no state dict .*; save model.state_dict\(\)$"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "place", "expression"),
    [
        (MODEL, "a whole module,", "c.state_dict()"),
        ({"model": MODEL, "ema": MODEL}, "a whole module under 'ema',", 'c["ema"].state_dict()'),
    ],
)
def test_a_whole_module_is_refused_with_the_statements_that_convert_it(
    tmp_path: Path, content: Any, place: str, expression: str, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(UserError) as error:
        read(tmp_path, content)
    message = str(error.value)
    assert place in message
    assert f'torch.save({expression}, "weights.pt")' in message
    monkeypatch.chdir(tmp_path)
    exec(message[message.index("import torch;") :], {})
    assert is_state(read_weights("weights.pt", "weights", STATE))
    with pytest.raises(UserError, match="a whole module"):
        read(tmp_path, content, "#ema")


def test_a_file_of_another_model_keeps_its_names(tmp_path: Path):
    other = {"layer.weight": torch.ones(2), "model.head.weight": torch.ones(2)}
    weights = read(tmp_path, {"model": other})
    assert weights.state.keys() == other.keys()
    assert not weights.note


def test_safetensors_get_their_prefix_stripped_too(tmp_path: Path):
    save_file(under("model."), tmp_path / "model.safetensors")
    assert is_state(read_weights(tmp_path, "weights", STATE))


def test_aliases_give_the_names_of_the_model():
    expected = {"model.a": torch.zeros(1), "b": torch.zeros(1)}
    state = {"a": torch.ones(1), "b": torch.ones(1), "c": torch.ones(1)}
    assert set(renamed(state, expected, lambda name: (name, f"model.{name}"))) == {"model.a", "b", "c"}
    both = renamed({"a": torch.ones(1), "model.a": torch.zeros(1)}, expected, lambda name: (name, f"model.{name}"))
    assert both["model.a"] == 0  # the tensor that has the name keeps it
