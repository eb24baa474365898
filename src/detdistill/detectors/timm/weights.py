"""Weights of a timm backbone: downloaded, from a file, or from a trained detector."""

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from detdistill.detectors.state_dicts import published_weights
from detdistill.detectors.weight_names import read_weights, renamed
from detdistill.errors import UserError

logger = logging.getLogger("detdistill.detectors")


def load_backbone(backbone: nn.Module, name: str, weights: str) -> None:
    """Load weights into a timm feature extractor, in place.

    weights: `default` (timm's pretrained weights), `none` (change nothing), a run folder, or a file of weights (see
    `weight_names.read_weights`). Run and file may hold the plain timm model or a detector on this backbone.
    Raises UserError if a tensor of the backbone is missing or has another shape.
    """
    if weights == "none":
        return
    expected = backbone.state_dict()
    if weights == "default":
        state: Mapping[str, Tensor] = renamed(_pretrained(name), expected, _extractor_names)
    else:
        found = read_weights(weights, "--backbone-weights", expected, _extractor_names)
        state = found.state
        if found.note and not Path(weights).is_dir():
            logger.warning("--backbone-weights %s: %s", weights, found.note)
    matched = {key: value for key, value in state.items() if key in expected and expected[key].shape == value.shape}
    missing = [key for key in expected if key not in matched and not key.endswith("num_batches_tracked")]
    if missing:
        counts = f"{len(missing)} of {len(expected)} tensors of {name} are missing or have another shape"
        remedy = f"give weights of the backbone {name}"
        raise UserError(f"--backbone-weights {weights}: {counts}, the first is {missing[0]!r}; {remedy}")
    backbone.load_state_dict(matched, strict=False)


def _extractor_names(key: str) -> tuple[str, ...]:
    """The possible names in timm's feature extractor of the tensor `key` of the plain model.

    An extractor of a model with a list of stages renames `layers.0.norm` to `layers_0.norm`. Others hold the whole
    model as their attribute `model` or `body`.
    """
    return key, key.replace(".", "_", 1), f"model.{key}", f"body.{key}"


def _pretrained(name: str) -> Mapping[str, Tensor]:
    remedy = "give a FILE, or none to start from random weights"
    return published_weights(name, "--backbone-weights default", remedy)
