"""Any timm backbone, and the feature pyramid on top of it at the strides asked for."""

import itertools
import math
import socket
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import load_file
from timm.models import FeatureInfo
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from detdistill.errors import UserError, nearest
from detdistill.types import required

# What timm's families take to let go of their size, the first that is known to a model. Swin then cuts full windows and shifts them in every
# stage, whatever the map's size, as its detectors were published; else a stage as small as one window at the nominal size never shifts.
ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"strict_img_size": False, "always_partition": True},
    {"strict_img_size": False},
    {"dynamic_img_size": True},
)


class ExtraLevels(ExtraFPNBlock):
    """Coarser levels: a stride-2 3x3 convolution on the coarsest map, then on each new one after a ReLU (as in RetinaNet's P6, P7)."""

    def __init__(self, channels: int, count: int):
        super().__init__()
        layers = [nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(count)]
        self.convolutions = nn.ModuleList(layers)
        for layer in layers:
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(required(layer.bias))

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        coarsest = results[-1]
        for index, layer in enumerate(self.convolutions):
            coarsest = layer(coarsest if index == 0 else coarsest.relu())
            results, names = [*results, coarsest], [*names, f"extra{index}"]
        return results, names


class PooledLevels(ExtraFPNBlock):
    """Coarser levels by subsampling the coarsest map (as the stride-64 level of Faster R-CNN)."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        for index in range(self.count):
            results, names = [*results, results[-1][..., ::2, ::2]], [*names, f"pool{index}"]
        return results, names


class ChannelsFirst(nn.Module):
    """A timm feature extractor whose maps are (B, H, W, C), such as Swin's, with its maps as (B, C, H, W)."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body
        self.feature_info = _feature_info(body)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [level.permute(0, 3, 1, 2).contiguous() for level in self.body(images)]


class Neck(nn.Module):
    """timm backbone and FPN. forward: images (B, 3, H, W) to ordered maps (B, out_channels, H/stride, W/stride), fine to coarse."""

    def __init__(
        self,
        body: nn.Module,
        reductions: tuple[int, ...],
        widths: tuple[int, ...],
        channels: int,
        extra: ExtraFPNBlock | None,
    ):
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(list(widths), channels, extra)
        self.reductions = reductions
        self.out_channels = channels

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        return self.fpn(
            OrderedDict((str(stride), level) for stride, level in zip(self.reductions, self.body(images), strict=True))
        )


def build_body(name: str, strides: tuple[int, ...], weights: str) -> tuple[nn.Module, tuple[int, ...], tuple[int, ...]]:
    """A timm backbone giving those of `strides` it has: the module, the strides it gives and their widths.

    weights: `default` (pretrained, fetched), `none`, or a file. Raises UserError for an unknown name, one that takes images of a single
    size only, or weights that can't be had.
    """
    if not timm.is_model(name):
        raise UserError(f"backbone {name!r}: timm has no such model{nearest(name, timm.list_models())}")
    try:
        reductions = _feature_info(_extractor(name)).reduction()
    except (RuntimeError, AttributeError) as error:
        raise UserError(
            f"backbone {name!r}: timm gives no feature maps of it ({str(error).splitlines()[0]}); take another"
        ) from None
    last = {
        reduction: index for index, reduction in enumerate(reductions)
    }  # of several maps at one stride, the deepest
    given = tuple(stride for stride in strides if stride in last)
    if not given:
        raise UserError(f"backbone {name!r}: has strides {reductions}, none of model.strides {strides}")
    indices = tuple(last[stride] for stride in given)
    body = _extractor(name, out_indices=indices)
    load_backbone(body, name, weights)
    body = ChannelsFirst(body) if getattr(body, "output_fmt", "NCHW") == "NHWC" else body
    if _fixed(name):
        _try_sizes(body, name, given)
    return body, given, tuple(_feature_info(body).channels())


def _fixed(name: str) -> bool:
    """Whether timm says that this model was made for images of one size, as most transformers are."""
    config = timm.get_pretrained_cfg(name)
    return config is not None and config.fixed_input_size


def _extractor(name: str, **options: Any) -> nn.Module:
    """The timm feature extractor with random weights; one made for images of a single size is asked to take any."""
    for more in ANY_SIZE if _fixed(name) else ():
        try:
            return timm.create_model(name, features_only=True, pretrained=False, **options, **more)
        except TypeError:  # this family has no such option
            continue
    return timm.create_model(name, features_only=True, pretrained=False, **options)


@torch.no_grad()
def _try_sizes(body: nn.Module, name: str, strides: tuple[int, ...]) -> None:
    """Raises UserError unless images of any size go through: better now than at the first step."""
    height, width = 96, 160  # 3 x 5 cells of stride 32, which no usual window divides
    body.eval()
    try:
        shapes = [tuple(level.shape[-2:]) for level in body(torch.zeros(1, 3, height, width))]
    except (AssertionError, RuntimeError):
        shapes = []
    body.train()
    if shapes != [(height // stride, width // stride) for stride in strides]:
        raise UserError(
            f"backbone {name!r}: takes images of one size only; take another, such as swin_tiny_patch4_window7_224"
        )


def _feature_info(body: nn.Module) -> FeatureInfo:
    info = body.feature_info
    assert isinstance(info, FeatureInfo)
    return info


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups as published, or the most that divide the width."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def load_backbone(body: nn.Module, name: str, weights: str) -> None:
    """Weights into a timm feature extractor, in place. weights: `default`, `none`, a .safetensors or .pt file of the plain timm model, or a run
    folder, whose detector's backbone is taken."""
    if weights == "none":
        return
    own = body.state_dict()
    if weights == "default":
        state: Mapping[str, Tensor] = _pretrained(name)
    elif Path(weights).is_dir():
        state = _of_run(read_state(Path(weights) / "model.safetensors", "--backbone-weights"), own)
    else:
        state = read_state(Path(weights), "--backbone-weights")
    # timm's extractors of models with stage lists join the first dot: `layers.0.norm` is their `layers_0.norm`. Others hold the whole `model`.
    spelled = {
        key: next((name for name in (key, key.replace(".", "_", 1), f"model.{key}") if name in own), key)
        for key in state
    }
    renamed = {spelled[key]: value for key, value in state.items()}
    matched = {key: value for key, value in renamed.items() if key in own and own[key].shape == value.shape}
    missing = [key for key in own if key not in matched and not key.endswith("num_batches_tracked")]
    if missing:
        lacking = f"{len(missing)} of {len(own)} tensors of {name} are missing or have another shape, the first is {missing[0]!r}"
        raise UserError(f"--backbone-weights {weights}: {lacking}; give weights of this very backbone")
    body.load_state_dict(matched, strict=False)


def _of_run(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A detector's tensors to those of its backbone, under the names of `own`: the prefix that most of them share is left out."""
    first = next(iter(own))
    prefixes = [name.removesuffix(first) for name in state if name.endswith(first)]
    best = max(prefixes, key=lambda prefix: sum(prefix + name in state for name in own), default="")
    return {name: state[best + name] for name in own if best + name in state}


def _pretrained(name: str) -> Mapping[str, Tensor]:
    return published(name, "--backbone-weights default", "give a FILE, or none to start from random weights")


def published(name: str, source: str, remedy: str) -> Mapping[str, Tensor]:
    """The state dict that timm publishes for a model. source, remedy: what the refusal begins and ends with. Raises UserError where it can't be had."""
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise UserError(f"{source}: timm has no pretrained weights of {name!r}; {remedy}")
    if not _cached(config.hf_hub_id) and not reachable(
        "huggingface.co"
    ):  # the hub client would retry for most of a minute
        raise UserError(
            f"{source}: the weights of {name!r} are not on this machine and huggingface.co can't be reached; {remedy}"
        )
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except (
        Exception
    ) as error:  # timm, huggingface_hub and the socket layer raise a dozen kinds; all mean the same to the user
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise UserError(f"{source}: can't fetch the weights of {name!r} ({reason}); {remedy}") from None


def _cached(repository: str | None) -> bool:
    files = ("model.safetensors", "pytorch_model.bin")
    return repository is not None and any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)


def reachable(host: str) -> bool:
    """Whether a connection to `host` can be opened, or a proxy may do it."""
    if getproxies():  # a proxy resolves names for us; only a real request can tell
        return True
    try:
        socket.create_connection((host, 443), timeout=5).close()
    except OSError:
        return False
    return True


def read_state(path: Path, flag: str) -> dict[str, Tensor]:
    """The state dict in a .safetensors file, or in a .pt/.pth file that holds tensors only. Raises UserError naming `flag` and the file."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{flag} {path}: can't read the file ({error.strerror or error})") from None
    except Exception as error:  # pickle, zip and safetensors each have their own
        reason = str(error).strip().splitlines()[0][:120]
        raise UserError(
            f"{flag} {path}: not a file of plain tensors ({reason}); save a state dict, best as .safetensors"
        ) from None
    for key in ("state_dict", "model"):  # the usual wrappings
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{flag} {path}: holds no state dict (names to tensors)")
    return state


def unmatched_tensors(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Names that don't fit, by what is wrong with them, of a state dict that is to go into a module whose own is `own`.

    Counters of batch norm, which frozen norms don't have, may be missing or left over.
    """
    counter = "num_batches_tracked"
    return {
        "of another shape": tuple(name for name in own if name in state and own[name].shape != state[name].shape),
        "missing": tuple(name for name in own if name not in state and not name.endswith(counter)),
        "unexpected": tuple(name for name in state if name not in own and not name.endswith(counter)),
    }


def check_strides(strides: tuple[int, ...]) -> None:
    """Raises UserError unless each stride is twice the one before: what a pyramid can give."""
    if any(coarse != 2 * fine for fine, coarse in itertools.pairwise(strides)):
        raise UserError(f"model.strides {strides}: each stride must be twice the one before, such as 8,16,32")


def build_neck(name: str, strides: tuple[int, ...], channels: int, weights: str, pooled: bool = False) -> Neck:
    """Backbone and FPN with levels at exactly `strides` (each twice the one before). Levels coarser than the backbone's are convolved,
    or subsampled where `pooled`. Raises UserError where the backbone can't serve."""
    check_strides(strides)
    body, given, widths = build_body(name, strides, weights)
    if given != strides[: len(given)]:
        raise UserError(
            f"model.strides {strides}: backbone {name!r} has no map of stride {strides[0]}; it gives {given}"
        )
    extra = len(strides) - len(given)
    block = (PooledLevels(extra) if pooled else ExtraLevels(channels, extra)) if extra else None
    return Neck(body, given, widths, channels, block)
