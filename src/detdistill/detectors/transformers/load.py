"""Pretrained detectors of transformers, from the hub or a folder, strictly: what that library would only warn of is refused."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from transformers.utils import logging
from transformers.utils.hub import cached_file

from detdistill.detectors.backbone import reachable
from detdistill.detectors.images import IMAGENET_MEAN, IMAGENET_STD
from detdistill.detectors.queries.detector import QueryDetector, assemble
from detdistill.detectors.registry import HostRecord, host_records, resolve
from detdistill.detectors.transformers.host import thaw
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.types import required

NORMED_HEAD = "class_labels_classifier"  # of the families whose decoder norms every stage
PROBE = 128  # pixels a side, a multiple of every stride that a backbone gives
PROCESSOR = "preprocessor_config.json"
NOTHING = "N/A"  # COCO's unused category ids, in the heads that are indexed by them
# Names of COCO's classes in the checkpoints that followed darknet's list, as RT-DETR's and D-FINE's, and COCO's own.
COCO_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
COUNTER = "num_batches_tracked"  # of batch norms, which frozen ones don't have


class ClassColumns(nn.Module):
    """Some of a class head's outputs (..., K), in the order of `columns`. background: the head ends in `no object`; then what is left out
    counts as that, so that the scores of the others are as they were."""

    index: Tensor
    rest: Tensor

    def __init__(self, head: nn.Module, columns: Sequence[int], outputs: int, background: bool):
        super().__init__()
        self.head, self.background = head, background
        self.register_buffer("index", torch.tensor(columns), persistent=False)
        self.register_buffer("rest", torch.tensor(sorted(set(range(outputs)) - set(columns))), persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        logits = self.head(states)
        kept = logits[..., self.index]
        return (
            torch.cat([kept, logits[..., self.rest].logsumexp(-1, keepdim=True)], dim=-1) if self.background else kept
        )


def load(name: str, classes: Sequence[str], model: ModelConfig = ModelConfig()) -> tuple[QueryDetector, int]:
    """The detector of a folder written by save_pretrained, or of the hub, in evaluation mode; and how many tensors matched, which is all.

    Its classes are the labels of its config; unnamed labels, as many as the run's `classes`, are these. Of `model` the number of detections
    and the score threshold count. Raises UserError for what isn't there, isn't served or doesn't fit.
    """
    source, local = f"hf:{name}", _local(name)
    records = host_records()
    config = _attempt(source, lambda: transformers.AutoConfig.from_pretrained(name, local_files_only=local))
    if config.model_type not in records:
        raise UserError(
            f"{source}: a model of type {config.model_type!r} is not a detector served here ({', '.join(records)} are)"
        )
    host = required(records[config.model_type].host)
    if (
        host.class_head == NORMED_HEAD and config.auxiliary_loss
    ):  # their own decoders then norm what one layer gives the next; ours are the published ones
        raise UserError(
            f"{source}: auxiliary_loss of its config.json makes another decoder of transformers' {config.model_type}, which is not served; set it to "
            "false there if it was trained without"
        )
    labels = _labels(config, classes, source)
    _check_pixels(name, host, local, source)
    kind = getattr(transformers, host.model)
    options = {
        "local_files_only": local,
        "dtype": torch.float32,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    detector, told = _attempt(source, lambda: kind.from_pretrained(name, config=config, **options))
    matched = check_loaded(told, detector, source)
    strides = _strides(detector, getattr(config, host.levels) if host.levels else 1, source)
    names = _select(detector, host, labels, source)
    family = resolve(host.adapter)(detector, names, strides)
    norms = thaw(family.body(), frozen_norms=True)
    served = assemble(family, model, norms)
    served.eval()
    return served, matched


def _check_pixels(name: str, host: HostRecord, local: bool, source: str) -> None:
    """Raises UserError where its image processor gives the model other pixels than ours."""
    options = {"local_files_only": local, "_raise_exceptions_for_missing_entries": False}
    file = _attempt(source, lambda: cached_file(name, PROCESSOR, **options))
    if file is None:
        return
    told = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": host.normalized,
        **json.loads(Path(file).read_text()),
    }
    wanted: dict[str, Any] = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": host.normalized}
    if host.normalized:
        told = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD, **told}
        wanted |= {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    for field, value in wanted.items():
        if not np.allclose(told[field], value, atol=1e-3):
            raise UserError(
                f"{source}: {field} of its {PROCESSOR} is {told[field]}; a {host.model} sees {value} here, and would answer otherwise than it was trained to"
            )


def check_loaded(told: dict[str, Any], model: nn.Module, source: str) -> int:
    """The number of tensors loaded. told: transformers' loading info. Raises UserError that tells the counts and the first odd name."""
    wrong = {
        "of another shape": sorted(str(key[0] if isinstance(key, tuple) else key) for key in told["mismatched_keys"]),
        "missing": sorted(key for key in told["missing_keys"] if not key.endswith(COUNTER)),
        "unexpected": sorted(key for key in told["unexpected_keys"] if not key.endswith(COUNTER)),
    }
    matched = len(model.state_dict()) - len(told["missing_keys"]) - len(told["mismatched_keys"])
    for kind, names in wrong.items():
        if names:
            counts = ", ".join(f"{len(keys)} {word}" for word, keys in wrong.items())
            raise UserError(
                f"{source}: {matched} tensors matched, {counts}; the first {kind} is {names[0]!r}: its weights are not those of its config.json"
            )
    return matched


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and reports of odd tensors, which are told in our own way."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _attempt(source: str, load: Callable[[], Any]) -> Any:
    with quiet():
        try:
            return load()
        except (
            Exception
        ) as error:  # the hub client, the config's checks, the unpickler and the model have their own each
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{source}: can't be loaded ({reason})") from None


def _local(name: str) -> bool:
    """Whether it is read from this disk: a folder, or a model in the hub's cache. Raises UserError where it can't be had at all."""
    if name and Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            run = "; it is a run folder, named without hf:" if (Path(name) / "model.json").is_file() else ""
            raise UserError(
                f"hf:{name}: the folder has no config.json, so no detector was saved there by save_pretrained{run}"
            )
        return True
    if not HUB.fullmatch(name):
        raise UserError(
            f"hf:{name}: no such folder, and not the name of a model on the hub, such as hf:facebook/detr-resnet-50"
        )
    files = ("model.safetensors", "pytorch_model.bin")
    cached = [isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", *files)]
    if cached[0] and any(cached[1:]):
        return True
    if not reachable("huggingface.co"):  # the hub client would retry for most of a minute
        raise UserError(
            f"hf:{name}: no such folder, not in the hub's cache on this machine, and huggingface.co can't be reached; "
            "give hf:FOLDER with a model saved by save_pretrained"
        )
    return False


def _labels(config: Any, classes: Sequence[str], source: str) -> tuple[str, ...]:
    """The name of each class column."""
    if set(config.id2label) != set(range(config.num_labels)):
        raise UserError(f"{source}: id2label of its config.json does not count the labels from 0")
    labels = tuple(config.id2label[column] for column in range(config.num_labels))
    if len(labels) == len(classes) and all(label == f"LABEL_{column}" for column, label in enumerate(labels)):
        return tuple(classes)
    own = set(labels)
    renamed = ((COCO_NAMES.get(label, label), label) for label in labels)
    labels = tuple(new if new in classes and new not in own else label for new, label in renamed)
    named = [label for label in labels if label != NOTHING]
    if len(set(named)) < len(named):
        twice = next(label for label in named if named.count(label) > 1)
        raise UserError(
            f"{source}: id2label of its config.json has {twice!r} more than once; give every label a name of its own"
        )
    return labels


def _strides(model: Any, levels: int, source: str) -> tuple[int, ...]:
    """Of each level: those of the backbone, seen on an empty image, as names of stages and indices don't tell them for every backbone."""
    body = getattr(model.model.backbone, "conv_encoder", model.model.backbone)
    with torch.no_grad():
        maps = _attempt(
            source, lambda: body(torch.zeros(1, 3, PROBE, PROBE), torch.ones(1, PROBE, PROBE, dtype=torch.long))
        )
    sides = [level.shape[-1] for level, _ in maps][-levels:]
    if any(PROBE % side for side in sides):
        raise UserError(f"{source}: its backbone gives {sides} cells for {PROBE} pixels, which is no stride")
    strides = [PROBE // side for side in sides]
    while len(strides) < levels:
        strides.append(2 * strides[-1])
    return tuple(strides)


def _select(model: Any, host: HostRecord, labels: Sequence[str], source: str) -> tuple[str, ...]:
    """The real classes among the labels; the class heads give their columns only, in place."""
    columns = [column for column, label in enumerate(labels) if label != NOTHING]
    names = tuple(labels[column] for column in columns)
    if len(names) < len(labels):
        if not host.class_head:
            raise UserError(
                f"{source}: labels {NOTHING!r} are not served for {model.config.model_type}; give every label a name"
            )
        outputs = len(labels) + host.background
        for owner in (model, model.model.decoder):  # the latter's own, where it proposes
            heads = getattr(owner, host.class_head, None)
            if isinstance(heads, nn.ModuleList):
                for place, head in enumerate(heads):
                    # Two-stage: the last head proposes, and asks its column 0 alone whether there is an object, whatever its label.
                    proposes = model.config.two_stage and place == len(heads) - 1
                    heads[place] = ClassColumns(
                        head, [0, *columns[1:]] if proposes else columns, outputs, host.background
                    )
            elif heads is not None:
                setattr(owner, host.class_head, ClassColumns(heads, columns, outputs, host.background))
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: column for column, name in enumerate(names)}
    return names
