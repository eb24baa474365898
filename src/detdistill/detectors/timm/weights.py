"""Weights of a timm backbone: downloaded, from a file of the plain timm model, or from a trained detector."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from detdistill.detectors.state_dicts import published_weights, read_state
from detdistill.errors import UserError


def load_backbone(backbone: nn.Module, name: str, weights: str) -> None:
    """Load weights into a timm feature extractor, in place.

    weights: `default` (timm's pretrained weights), `none` (change nothing), a .safetensors or .pt file of the plain
    timm model, or a run folder, from which the backbone of the trained detector is taken.
    Raises UserError if a tensor of the backbone is missing or has another shape.
    """
    if weights == "none":
        return
    expected = backbone.state_dict()
    if weights == "default":
        state: Mapping[str, Tensor] = _pretrained(name)
    elif Path(weights).is_dir():
        state = _backbone_of_run(read_state(Path(weights) / "model.safetensors", "--backbone-weights"), expected)
    else:
        state = read_state(Path(weights), "--backbone-weights")
    renamed = {_extractor_name(key, expected): value for key, value in state.items()}
    matched = {key: value for key, value in renamed.items() if key in expected and expected[key].shape == value.shape}
    missing = [key for key in expected if key not in matched and not key.endswith("num_batches_tracked")]
    if missing:
        counts = f"{len(missing)} of {len(expected)} tensors of {name} are missing or have another shape"
        remedy = f"give weights of the backbone {name}"
        raise UserError(f"--backbone-weights {weights}: {counts}, the first is {missing[0]!r}; {remedy}")
    backbone.load_state_dict(matched, strict=False)


def _extractor_name(key: str, expected: Mapping[str, Tensor]) -> str:
    """The name in timm's feature extractor of the tensor `key` of the plain model.

    An extractor of a model with a list of stages renames `layers.0.norm` to `layers_0.norm`. Others hold the whole
    model as their attribute `model`. Returns `key` if the extractor has no such tensor.
    """
    for name in (key, key.replace(".", "_", 1), f"model.{key}"):
        if name in expected:
            return name
    return key


def _backbone_of_run(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The backbone's tensors in a detector's state dict, under the names of `expected`.

    The backbone's prefix differs between detectors. It is the prefix under which most names of `expected` exist.
    """
    first = next(iter(expected))
    prefixes = [name.removesuffix(first) for name in state if name.endswith(first)]
    best = max(prefixes, key=lambda prefix: sum(prefix + name in state for name in expected), default="")
    return {name: state[best + name] for name in expected if best + name in state}


def _pretrained(name: str) -> Mapping[str, Tensor]:
    remedy = "give a FILE, or none to start from random weights"
    return published_weights(name, "--backbone-weights default", remedy)
