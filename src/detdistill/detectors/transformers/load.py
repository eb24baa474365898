"""Load pretrained detectors of transformers from the hub or a folder.

Loading is strict: anything that transformers only warns about raises an error here.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from transformers.utils import logging
from transformers.utils.hub import cached_file

from detdistill.detectors.backbone import batch_norms
from detdistill.detectors.queries.detector import QueryDetector, assemble
from detdistill.detectors.registry import HostRecord, host_records, resolve
from detdistill.detectors.state_dicts import reachable
from detdistill.detectors.statistics import IMAGENET, UNCHANGED, PixelStatistics
from detdistill.detectors.transformers.host import conv_encoder
from detdistill.errors import UserError, one_line
from detdistill.recipe import ModelConfig
from detdistill.types import required

PROBE = 128  # side in pixels of the test image, a multiple of every stride of a backbone
PROCESSOR = "preprocessor_config.json"
UNUSED = "N/A"  # label of unused COCO category ids, in heads with one column per category id
# Class names in checkpoints that use darknet's list, such as RT-DETR's and D-FINE's, and COCO's names of the same
# classes.
COCO_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
COUNTER = "num_batches_tracked"  # buffer of batch norms that frozen norms do not have
# Model types whose decoder in transformers, with `auxiliary_loss`, feeds the normed states to the next layer. Here the
# decoder is the published one, which does not; see `detr`.
CHANGED_BY_AUXILIARY_LOSS = ("detr", "conditional_detr")


class SelectedColumns(nn.Module):
    """A class head that returns only some of the columns of `head`, in the order of `columns`.

    outputs: the number of columns of `head`. background: True if its last column is `no object`. The probability of the
    dropped columns is then added to `no object`, so that the scores of the kept columns do not change.
    """

    index: Tensor
    rest: Tensor

    def __init__(self, head: nn.Module, columns: Sequence[int], outputs: int, background: bool):
        super().__init__()
        self.head = head
        self.background = background
        self.register_buffer("index", torch.tensor(columns), persistent=False)
        self.register_buffer("rest", torch.tensor(sorted(set(range(outputs)) - set(columns))), persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        logits = self.head(states)  # (..., outputs)
        kept = logits[..., self.index]  # (..., K)
        if not self.background:
            return kept
        background = logits[..., self.rest].logsumexp(-1, keepdim=True)
        return torch.cat([kept, background], dim=-1)  # (..., K + 1)


def load(name: str, classes: Sequence[str], model: ModelConfig = ModelConfig()) -> tuple[QueryDetector, int]:
    """A detector in eval mode from the hub or from a folder of save_pretrained, and the number of tensors loaded.

    Its classes are the labels of its config. If the labels have no names and are as many as `classes`, they get these
    names. Of `model`, the number of detections and the score threshold are used. Raises UserError if the detector can't
    be read, is not supported, or does not fit.
    """
    source = f"hf:{name}"
    local = _is_local(name)
    records = host_records()
    config = _attempt(source, lambda: transformers.AutoConfig.from_pretrained(name, local_files_only=local))
    if config.model_type not in records:
        raise UserError(
            f"{source}: model type {config.model_type!r} is not supported; choose a detector of type "
            f"{', '.join(records)}"
        )
    host = required(records[config.model_type].host)
    if config.model_type in CHANGED_BY_AUXILIARY_LOSS and config.auxiliary_loss:
        raise UserError(
            f"{source}: auxiliary_loss in its config.json is true, and the {config.model_type} decoder of transformers "
            "then computes other predictions than the published one, which detdistill uses; set it to false if the "
            "model was trained without it"
        )
    labels = _labels(config, classes, source)
    mean, std = _statistics(name, host, local, source)
    model_class = getattr(transformers, host.model)
    options = {
        "local_files_only": local,
        "dtype": torch.float32,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    host_model, info = _attempt(source, lambda: model_class.from_pretrained(name, config=config, **options))
    matched = check_loaded(info, host_model, source)
    strides = _strides(host_model, getattr(config, host.levels) if host.levels else 1, source)
    names = _select_classes(host_model, host, labels, source)
    family = resolve(host.adapter)(host_model, names, strides)
    family.backbone().requires_grad_(True)  # transformers freezes most of it
    for norm in batch_norms(family.backbone()):
        norm.requires_grad_(False)
    detector = assemble(family, model.model_copy(update={"mean": mean, "std": std}))
    detector.eval()
    return detector, matched


def _statistics(name: str, host: HostRecord, local: bool, source: str) -> PixelStatistics:
    """The pixel statistics of the model's image processor, for pixels in 0..1.

    The processor gives (255 r u - mean) / std for a pixel u in 0..1, with its rescale factor r. Without a processor
    file, the statistics are those of the family's published weights. Raises UserError if a field is not usable.
    """
    options = {"local_files_only": local, "_raise_exceptions_for_missing_entries": False}
    file = _attempt(source, lambda: cached_file(name, PROCESSOR, **options))
    published = IMAGENET if host.normalized else UNCHANGED
    if file is None:
        return published
    stored = json.loads(Path(file).read_text(encoding="utf-8"))
    white = 255 * float(stored.get("rescale_factor", 1 / 255)) if stored.get("do_rescale", True) else 255.0
    mean, std = UNCHANGED
    if stored.get("do_normalize", host.normalized):
        mean = stored.get("image_mean", published.mean)
        std = stored.get("image_std", published.std)
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or white <= 0:
        problem = f"image_mean {mean}, image_std {std} or rescale_factor in its {PROCESSOR} can't be used"
        raise UserError(f"{source}: {problem}; write three means, three positive deviations and a positive factor")
    scaled = [(values[0] / white, values[1] / white, values[2] / white) for values in (mean, std)]
    return PixelStatistics(*scaled)


def check_loaded(info: dict[str, Any], model: nn.Module, source: str) -> int:
    """The number of tensors loaded. info: the loading info of transformers.

    Raises UserError with the counts and the first name, unless every tensor matched. Counters of batch norms may
    differ.
    """
    wrong = {
        "of another shape": sorted(str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]),
        "missing": sorted(key for key in info["missing_keys"] if not key.endswith(COUNTER)),
        "unexpected": sorted(key for key in info["unexpected_keys"] if not key.endswith(COUNTER)),
    }
    matched = len(model.state_dict()) - len(info["missing_keys"]) - len(info["mismatched_keys"])
    for problem, names in wrong.items():
        if names:
            counts = ", ".join(f"{len(keys)} {word}" for word, keys in wrong.items())
            raise UserError(
                f"{source}: {matched} tensors matched, {counts}; the first {problem} is {names[0]!r}: the weights do "
                "not match its config.json; save the model again with save_pretrained"
            )
    return matched


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and loading reports of transformers. `check_loaded` reports problems instead."""
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
    """The result of `load()`. Any exception becomes a UserError."""
    with quiet():
        try:
            return load()
        except Exception as error:  # hub client, config checks, unpickler and model raise many different types
            reason = one_line(error, 200)
            raise UserError(f"{source}: can't be loaded ({reason})") from None


def _is_local(name: str) -> bool:
    """True if the model is read from this disk: a folder, or a model in the hub's cache.

    Raises UserError if the model is not on this disk and the hub can't be reached.
    """
    if name and Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            run = "; it is a run folder: give it without hf:" if (Path(name) / "model.json").is_file() else ""
            raise UserError(
                f"hf:{name}: the folder has no config.json, so it holds no detector saved by save_pretrained{run}"
            )
        return True
    if not HUB_NAME.fullmatch(name):
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
    """The name of each class column, in COCO's spelling if `classes` use it. Raises UserError for repeated names."""
    if set(config.id2label) != set(range(config.num_labels)):
        raise UserError(f"{source}: id2label in its config.json does not number the labels from 0")
    labels = tuple(config.id2label[column] for column in range(config.num_labels))
    if len(labels) == len(classes) and all(label == f"LABEL_{column}" for column, label in enumerate(labels)):
        return tuple(classes)
    spelled = []
    for label in labels:
        coco_name = COCO_NAMES.get(label, label)
        spelled.append(coco_name if coco_name in classes and coco_name not in labels else label)
    named = [label for label in spelled if label != UNUSED]
    if len(set(named)) < len(named):
        repeated = next(label for label in named if named.count(label) > 1)
        raise UserError(
            f"{source}: id2label in its config.json has {repeated!r} more than once; give every label a different name"
        )
    return tuple(spelled)


def _strides(model: Any, levels: int, source: str) -> tuple[int, ...]:
    """The stride of each level.

    The backbone runs on an empty image to get the strides, because names of stages and indices do not give them for
    every backbone.
    """
    images, mask = torch.zeros(1, 3, PROBE, PROBE), torch.ones(1, PROBE, PROBE, dtype=torch.long)
    with torch.no_grad():
        maps = _attempt(source, lambda: conv_encoder(model)(images, mask))
    sides = [level.shape[-1] for level, _ in maps][-levels:]
    if any(PROBE % side for side in sides):
        raise UserError(
            f"{source}: its backbone gives {sides} cells for {PROBE} pixels, which is not a whole stride; choose "
            "another model"
        )
    strides = [PROBE // side for side in sides]
    while len(strides) < levels:
        strides.append(2 * strides[-1])
    return tuple(strides)


def _select_classes(model: Any, host: HostRecord, labels: Sequence[str], source: str) -> tuple[str, ...]:
    """The labels that are in use. The class heads are changed in place to return the columns of these labels only."""
    columns = [column for column, label in enumerate(labels) if label != UNUSED]
    names = tuple(labels[column] for column in columns)
    if len(names) == len(labels):
        return names
    if not host.class_head:
        raise UserError(
            f"{source}: labels {UNUSED!r} are not supported for {model.config.model_type}; give every label a name"
        )
    outputs = len(labels) + host.background
    for owner in (model, model.model.decoder):  # a two-stage decoder has heads of its own
        heads = getattr(owner, host.class_head, None)
        if isinstance(heads, nn.ModuleList):
            for index, head in enumerate(heads):
                # Two-stage: the last head scores proposals. Its column 0 means `object`, whatever label 0 is.
                is_proposal_head = model.config.two_stage and index == len(heads) - 1
                kept = [0, *columns[1:]] if is_proposal_head else columns
                heads[index] = SelectedColumns(head, kept, outputs, host.background)
        elif heads is not None:
            setattr(owner, host.class_head, SelectedColumns(heads, columns, outputs, host.background))
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: column for column, name in enumerate(names)}
    return names
