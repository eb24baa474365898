"""Vision transformers (ViT) as feature teachers. They are frozen and give one map of patch tokens, no boxes or classes.

One token becomes one cell of the teacher's stride, whatever the patch size: the batch is resized by patch size / stride
before it enters the ViT. At stride 32 this is the alignment of RT-DETRv4 (arXiv:2510.25257), which halves images of 640
pixels for a DINOv3 with patches of 16 pixels, so that its tokens meet a map of stride 32.
A ViT is not masked. The padding is gray (0 after normalization), patches attend to it, and the position embeddings span
the padded batch.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import timm
import torch
from torch import Tensor, nn

from detdistill.detectors.features import require_only_neck
from detdistill.detectors.images import cells_to_patches, normalize
from detdistill.detectors.state_dicts import published_weights, unmatched_tensors
from detdistill.detectors.statistics import IMAGENET_MEAN, IMAGENET_STD
from detdistill.detectors.weight_names import read_weights
from detdistill.errors import UserError, nearest, one_line
from detdistill.types import Batch, DetectorInfo, DetectorOutput, Need, Pyramid, Targets

logger = logging.getLogger("detdistill.detectors")

DEFAULT_STRIDE = 32  # of the published alignment
CLASSIFIER_PREFIXES = ("head.", "head_dist.", "classifier.", "pooler.")  # layers after the tokens, which are not used
HF_MODEL_TYPES = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")  # `model_type` in a config.json
REMEDY = "choose another ViT, such as timm:vit_base_patch16_dinov3"


@dataclass(frozen=True)
class ViTInfo:
    """How to use the module of a ViT.

    name: the --teacher value, for messages.
    width: D, the width of a token.
    patch_size: side of a patch in pixels.
    prefix_tokens: number of tokens before those of the patches (class token and registers).
    mean, std: of each channel, for images in 0..1.
    forward_tokens: function of the module and of images (B, 3, h, w). It returns tokens (B, prefix_tokens + cells, D)
        after the last norm.
    """

    name: str
    width: int
    patch_size: int
    prefix_tokens: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    forward_tokens: Callable[[nn.Module, Tensor], Tensor]


class FeatureTeacher(nn.Module):
    """A frozen ViT with the interface of `types.Detector`: the pyramid `neck` with one level, and no predictions.

    stride: pixels of the batch per token. Raises UserError if the tokens are not one per patch, or if the ViT accepts
    images of one size only.
    """

    def __init__(self, body: nn.Module, vit: ViTInfo, stride: int = DEFAULT_STRIDE):
        super().__init__()
        if stride < 1:
            remedy = f"use {DEFAULT_STRIDE}, or one of the student's strides"
            raise UserError(f"{vit.name}: the stride {stride} must be at least 1 pixel; {remedy}")
        self.body, self.vit = body, vit
        self.info = DetectorInfo("vit", (), (stride,), {"neck": vit.width}, "sigmoid")
        self.requires_grad_(False)
        self.eval()
        self._check_tokens()

    def backbone_parameters(self) -> list[nn.Parameter]:
        """All parameters."""
        return list(self.body.parameters())

    @torch.no_grad()
    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        """The pyramid `neck` with one map (B, D, ceil(H / stride), ceil(W / stride)).

        Raises ValueError if targets are given, or if `need` asks for anything but this pyramid.
        """
        require_only_neck(self.vit.name, "a ViT", need, targets)
        level = self._token_map(self._resized_images(batch))
        return DetectorOutput({"neck": Pyramid((level,), self.info.strides, batch.sizes)})

    def detect(self, batch: Batch) -> NoReturn:
        """Raises UserError, because a ViT detects nothing."""
        problem = f"{self.vit.name}: a ViT gives features only, and can't detect"
        raise UserError(f"{problem}; use it as --teacher with methods that read only the neck")

    def _resized_images(self, batch: Batch) -> Tensor:
        """The normalized images (B, 3, rows * patch, columns * patch).

        They are padded to whole cells of the stride, and then resized so that a cell becomes a patch.
        """
        (stride,) = self.info.strides
        return cells_to_patches(normalize(batch, self.vit.mean, self.vit.std), stride, self.vit.patch_size)

    def _token_map(self, images: Tensor) -> Tensor:
        """Run the ViT on images (B, 3, rows * patch, columns * patch). Returns the map (B, D, rows, columns)."""
        tokens = self.vit.forward_tokens(self.body, images)[:, self.vit.prefix_tokens :]  # (B, cells, D)
        return tokens.transpose(1, 2).unflatten(2, (-1, images.shape[-1] // self.vit.patch_size))

    @torch.no_grad()
    def _check_tokens(self) -> None:
        """Raises UserError unless the ViT accepts an unusual image size and returns one token per patch."""
        rows, columns = 2, 3  # no published ViT was trained with this size
        images = torch.zeros(1, 3, rows * self.vit.patch_size, columns * self.vit.patch_size)
        try:
            shape = tuple(self.vit.forward_tokens(self.body, images).shape)
        except (AssertionError, RuntimeError, ValueError, TypeError):
            shape = ()
        if shape != (1, self.vit.prefix_tokens + rows * columns, self.vit.width):
            problem = "accepts images of one size only, or does not return one token per patch"
            raise UserError(f"{self.vit.name}: {problem}; {REMEDY}")


def feature_teacher(path: str, stride: int = DEFAULT_STRIDE) -> FeatureTeacher:
    """Load a ViT as a feature teacher.

    path: `timm:NAME` (published weights), `timm:NAME=FILE` (a state dict of that timm model), or `hf:FOLDER`
    (a ViT, DINOv2 or DINOv3 written by transformers). stride: pixels of the batch per token.
    Raises UserError if there is no such model, if it is not a plain ViT, or if its weights can't be loaded or do not
    fit.
    """
    if path.startswith("hf:"):
        return FeatureTeacher(*_from_folder(path), stride)
    name, _, file = path.removeprefix("timm:").partition("=")
    if not timm.is_model(name):
        raise UserError(f"timm:{name}: timm has no such model{nearest(name, timm.list_models())}")
    try:
        body: Any = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
        width, patch_size, prefix_tokens = body.num_features, body.patch_embed.patch_size[0], body.num_prefix_tokens
    except (TypeError, AttributeError):
        problem = "not a plain ViT whose position embeddings timm can resize"
        raise UserError(f"timm:{name}: {problem}; {REMEDY}") from None
    state = _from_file(file, f"timm:{name}", body) if file else _published(name)
    _load_state(body, state, file or path)
    config: Any = timm.get_pretrained_cfg(name)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if config is None else (config.mean, config.std)
    vit = ViTInfo(f"timm:{name}", width, patch_size, prefix_tokens, mean, std, forward_tokens=_timm_tokens)
    return FeatureTeacher(body, vit, stride)


def is_vit_folder(folder: Path) -> bool:
    """True if transformers wrote to `folder` a ViT that can be a feature teacher."""
    return _read_json(folder / "config.json").get("model_type") in HF_MODEL_TYPES


def _timm_tokens(body: Any, images: Tensor) -> Tensor:
    tokens = body.forward_features(images)
    # A model that pools its tokens has its last norm after the pooling, and leaves the tokens without a norm.
    return body.fc_norm(tokens) if isinstance(body.norm, nn.Identity) else tokens


def _hf_tokens(body: Any, images: Tensor) -> Tensor:
    # The other model types always interpolate their position embeddings.
    options = {"interpolate_pos_encoding": True} if body.config.model_type == "vit" else {}
    return body(pixel_values=images, **options).last_hidden_state


def _load_state(body: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a timm state dict in place, without its classifier. Raises UserError if a tensor does not fit."""
    expected = body.state_dict()
    state = {key: value for key, value in state.items() if key in expected or not key.startswith(CLASSIFIER_PREFIXES)}
    unmatched = unmatched_tensors(expected, state)
    for kind, names in unmatched.items():
        if names:
            counts = ", ".join(f"{len(names)} {kind}" for kind, names in unmatched.items())
            problem = f"{counts} of {len(expected)} tensors; first: {names[0]!r} is {kind}"
            raise UserError(f"{source}: {problem}; give a state dict of this timm model")
    body.load_state_dict(dict(state))


def _from_file(file: str, flag: str, body: nn.Module) -> Mapping[str, Tensor]:
    """The state dict in a file of weights. flag: for messages."""
    found = read_weights(file, flag, body.state_dict())
    if found.note:
        logger.warning("%s=%s: %s", flag, file, found.note)
    return found.state


def _published(name: str) -> Mapping[str, Tensor]:
    """timm's published weights. There is no choice of random weights, because a random ViT teaches nothing."""
    return published_weights(name, f"timm:{name}", f"give timm:{name}=FILE")


def _from_folder(path: str) -> tuple[nn.Module, ViTInfo]:
    """Load `hf:FOLDER`. Raises UserError if it holds no ViT, or if its weights do not fit."""
    from transformers import AutoModel  # takes seconds to import

    from detdistill.detectors.transformers.load import check_loaded, quiet

    folder = Path(path.removeprefix("hf:"))
    if not is_vit_folder(folder):
        model_type = _read_json(folder / "config.json").get("model_type")
        supported = f"the supported types are {', '.join(HF_MODEL_TYPES)}"
        raise UserError(f"{path}: no config.json of a ViT in this folder (model_type {model_type!r}); {supported}")
    options = {
        "local_files_only": True,
        "dtype": torch.float32,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    with quiet():
        try:
            body, loading_info = AutoModel.from_pretrained(folder, **options)
        except Exception as error:  # config checks, the unpickler and the model raise errors of their own
            reason = one_line(error, 200)
            raise UserError(f"{path}: transformers can't load it ({reason})") from None
    for key in ("missing_keys", "unexpected_keys"):
        names = {name for name in loading_info[key] if not str(name).startswith(CLASSIFIER_PREFIXES)}
        loading_info = {**loading_info, key: names}
    if hasattr(body, "pooler"):
        body.pooler = None  # it is not used, and has random weights if the folder holds a classifier
    check_loaded(loading_info, body, path)
    processor = _read_json(folder / "preprocessor_config.json")
    mean = tuple(processor.get("image_mean") or IMAGENET_MEAN)
    std = tuple(processor.get("image_std") or IMAGENET_STD)
    prefix_tokens = 1 + getattr(body.config, "num_register_tokens", 0)
    vit = ViTInfo(path, body.config.hidden_size, body.config.patch_size, prefix_tokens, mean, std, _hf_tokens)
    return body, vit


def _read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Empty if there is no such file or it holds no object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
