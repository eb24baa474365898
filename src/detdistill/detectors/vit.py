"""Vision transformers as feature teachers: frozen, without boxes or classes, one map of patch tokens each.

A token is a cell of the stride asked for, whatever the patch: the batch is enlarged or shrunk by patch / stride before it goes in. RT-DETRv4
(arXiv:2510.25257) halves images of 640 pixels for its DINOv3 with patches of 16, so that tokens meet a map of stride 32; so does stride 32 here.
A ViT sees padding: it is grey (0 after the norm), patches attend to it, and position embeddings span the padded batch.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detdistill.detectors.backbone import published, read_state, unmatched_tensors
from detdistill.detectors.images import IMAGENET_MEAN, IMAGENET_STD, normalize
from detdistill.errors import UserError, nearest
from detdistill.types import Batch, DetectorInfo, DetectorOutput, Need, Pyramid, Targets

STRIDE = 32  # of the published alignment
HEADS = ("head.", "head_dist.", "classifier.", "pooler.")  # of a classifier: behind the tokens, and left out
HF_VITS = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")  # by the `model_type` of a config.json
OTHER = "take another ViT, such as timm:vit_base_patch16_dinov3"
Tokens = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class ViT:
    """A body as seen from outside. name: as it was asked for. width: D. patch: side in pixels. prefix: tokens before the patches' own, class and
    registers. mean, std: of images in 0..1. tokens: body and images (B, 3, h, w) to (B, prefix + cells, D), behind the last norm."""

    name: str
    width: int
    patch: int
    prefix: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tokens: Tokens


class FeatureTeacher(nn.Module):
    """A frozen ViT that offers what `types.Detector` asks for as far as features go: the pyramid `neck` with one level of `stride`.

    Raises UserError where the body's patch tokens can't be told, or images of any size don't go through.
    """

    def __init__(self, body: nn.Module, vit: ViT, stride: int = STRIDE):
        super().__init__()
        if stride < 1:
            raise UserError(f"{vit.name}: a stride of {stride} pixels is none; take {STRIDE}, or one of the student's")
        self.body, self.vit = body, vit
        self.info = DetectorInfo("vit", (), (stride,), {"neck": vit.width}, "sigmoid")
        self.requires_grad_(False)
        self.eval()
        self._try_size()

    def backbone_parameters(self) -> list[nn.Parameter]:
        """All that there are."""
        return list(self.body.parameters())

    @torch.no_grad()
    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        """The pyramid `neck`: (B, D, ceil(H / stride), ceil(W / stride)). Raises ValueError for targets, and for any need but that."""
        wrong = [f"pyramid {name!r}" for name in sorted(need.pyramids - {"neck"})]
        asked = {"towers": need.towers, "predictions": need.predictions, "queries": need.queries}
        wrong += [name for name, wanted in {**asked, "proposals": need.proposals or need.classify}.items() if wanted]
        wrong += ["task losses"] * (targets is not None)
        if wrong:
            raise ValueError(f"{self.vit.name} is a ViT and has no {', '.join(wrong)}; it has the pyramid 'neck'")
        return DetectorOutput({"neck": Pyramid((self._map(self._images(batch)),), self.info.strides, batch.sizes)})

    def detect(self, batch: Batch) -> NoReturn:
        """Raises UserError: nothing is detected."""
        raise UserError(
            f"{self.vit.name}: a ViT gives features and detects nothing; it can be --teacher of methods that read the neck alone"
        )

    def _images(self, batch: Batch) -> Tensor:
        """Normalised, padded to whole cells, each of them then as large as a patch: (B, 3, rows * patch, columns * patch)."""
        images, (stride,), patch = normalize(batch, self.vit.mean, self.vit.std), self.info.strides, self.vit.patch
        rows, columns = (math.ceil(side / stride) for side in images.shape[-2:])
        images = F.pad(images, (0, columns * stride - images.shape[-1], 0, rows * stride - images.shape[-2]))
        if stride == patch:
            return images
        return F.interpolate(
            images, (rows * patch, columns * patch), mode="bilinear", align_corners=False, antialias=True
        )

    def _map(self, images: Tensor) -> Tensor:
        """Whole patches (B, 3, rows * patch, columns * patch) to (B, D, rows, columns)."""
        tokens = self.vit.tokens(self.body, images)[:, self.vit.prefix :]
        return tokens.transpose(1, 2).unflatten(2, (-1, images.shape[-1] // self.vit.patch))

    @torch.no_grad()
    def _try_size(self) -> None:
        """Raises UserError unless a size that no weights were made for goes through, with a token for each patch."""
        rows, columns = 2, 3
        try:
            shape = tuple(
                self.vit.tokens(self.body, torch.zeros(1, 3, rows * self.vit.patch, columns * self.vit.patch)).shape
            )
        except (AssertionError, RuntimeError, ValueError, TypeError):
            shape = ()
        if shape != (1, self.vit.prefix + rows * columns, self.vit.width):
            raise UserError(
                f"{self.vit.name}: takes images of one size only, or has other tokens than patches; {OTHER}"
            )


def feature_teacher(path: str, stride: int = STRIDE) -> FeatureTeacher:
    """`timm:NAME` (its published weights), `timm:NAME=FILE` (a state dict of that timm model) or `hf:FOLDER` (a ViT, DINOv2 or DINOv3 written by
    transformers). stride: pixels of the batch a token. Raises UserError where it can't be had, doesn't fit or isn't such a model."""
    if path.startswith("hf:"):
        return FeatureTeacher(*_from_folder(path), stride)
    name, _, file = path.removeprefix("timm:").partition("=")
    if not timm.is_model(name):
        raise UserError(f"timm:{name}: timm has no such model{nearest(name, timm.list_models())}")
    try:
        body: Any = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
        patch = body.patch_embed.patch_size[0]
        shape = {"width": body.num_features, "patch": patch, "prefix": body.num_prefix_tokens}
    except (TypeError, AttributeError):
        raise UserError(
            f"timm:{name}: no plain ViT whose position embeddings timm can fit to any image; {OTHER}"
        ) from None
    _fill(body, read_state(Path(file), f"timm:{name}") if file else _published(name), file or path)
    config: Any = timm.get_pretrained_cfg(name)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if config is None else (config.mean, config.std)
    return FeatureTeacher(body, ViT(f"timm:{name}", **shape, mean=mean, std=std, tokens=_timm_tokens), stride)


def is_vit_folder(folder: Path) -> bool:
    """Whether transformers wrote a ViT there that can be a feature teacher."""
    return _json(folder / "config.json").get("model_type") in HF_VITS


def _timm_tokens(body: Any, images: Tensor) -> Tensor:
    tokens = body.forward_features(images)
    return (
        body.fc_norm(tokens) if isinstance(body.norm, nn.Identity) else tokens
    )  # a model that pools norms behind the pooling


def _hf_tokens(body: Any, images: Tensor) -> Tensor:
    more = {"interpolate_pos_encoding": True} if body.config.model_type == "vit" else {}  # the others do so unasked
    return body(pixel_values=images, **more).last_hidden_state


def _fill(body: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """The state into the body, in place: all of it, but the classifier's head. Raises UserError for a tensor that doesn't fit."""
    own = body.state_dict()
    state = {key: value for key, value in state.items() if key in own or not key.startswith(HEADS)}
    wrong = unmatched_tensors(own, state)
    for kind, keys in wrong.items():
        if keys:
            counts = ", ".join(f"{len(names)} {word}" for word, names in wrong.items())
            raise UserError(
                f"{source}: {counts} of {len(own)} tensors; the first {kind} is {keys[0]!r}: give a state dict of this very timm model"
            )
    body.load_state_dict(dict(state))


def _published(name: str) -> Mapping[str, Tensor]:
    return published(name, f"timm:{name}", f"give timm:{name}=FILE")  # a random ViT teaches nothing


def _from_folder(path: str) -> tuple[nn.Module, ViT]:
    """Body and description of `hf:FOLDER`."""
    from transformers import AutoModel  # takes seconds to import

    from detdistill.detectors.transformers.load import check_loaded, quiet

    folder = Path(path.removeprefix("hf:"))
    if not is_vit_folder(folder):
        kind = _json(folder / "config.json").get("model_type")
        raise UserError(f"{path}: no config.json of a ViT there (model_type {kind!r}); served are {', '.join(HF_VITS)}")
    options = {
        "local_files_only": True,
        "dtype": torch.float32,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    with quiet():
        try:
            body, told = AutoModel.from_pretrained(folder, **options)
        except Exception as error:  # the config's checks, the unpickler and the model have their own each
            raise UserError(
                f"{path}: can't be loaded ({' '.join(str(error).split())[:200] or type(error).__name__})"
            ) from None
    left = {
        key: {name for name in told[key] if not str(name).startswith(HEADS)}
        for key in ("missing_keys", "unexpected_keys")
    }
    if hasattr(body, "pooler"):
        body.pooler = None  # behind the tokens, and random where a classifier was saved
    check_loaded({**told, **left}, body, path)
    seen = _json(folder / "preprocessor_config.json")
    mean, std = (
        tuple(seen.get(key) or default) for key, default in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD))
    )
    prefix = 1 + getattr(body.config, "num_register_tokens", 0)
    return body, ViT(path, body.config.hidden_size, body.config.patch_size, prefix, mean, std, _hf_tokens)


def _json(file: Path) -> dict[str, Any]:
    """The content of a JSON file, empty where there is none or it can't be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
