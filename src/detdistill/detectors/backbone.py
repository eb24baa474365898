"""Backbones of timm, and the feature pyramid network (FPN) on top of a backbone at the strides of the recipe."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import FeatureInfo
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from detdistill.detectors.convolutions import SeparableConv
from detdistill.detectors.neck import Convolution, feature_pyramid, plain_convolution
from detdistill.detectors.state_dicts import published_weights, read_state
from detdistill.errors import UserError, nearest
from detdistill.recipe import ModelConfig

# Options that let a timm transformer accept images of any size. They are tried in order, and the first that the family
# accepts is used. With always_partition, Swin cuts full windows and shifts them in every stage, whatever the size of
# the map, as the published detectors on Swin do. Without it, a stage whose map is as small as one window at the nominal
# image size never shifts its windows.
ANY_SIZE_OPTIONS: tuple[dict[str, Any], ...] = (
    {"strict_img_size": False, "always_partition": True},
    {"strict_img_size": False},
    {"dynamic_img_size": True},
)


class ChannelsFirst(nn.Module):
    """Wraps a timm feature extractor whose maps are (B, H, W, C), such as Swin, and returns maps (B, C, H, W)."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.body = backbone
        self.feature_info = _feature_info(backbone)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [level.permute(0, 3, 1, 2).contiguous() for level in self.body(images)]


class Neck(nn.Module):
    """A timm backbone with an FPN, see `feature_pyramid`.

    forward: images (B, 3, H, W) to an ordered dict of maps (B, out_channels, H/stride, W/stride), fine to coarse.
    body: the backbone. The attribute keeps torchvision's name, because weights are saved under it.
    reductions: the strides that come from the backbone. Coarser levels come from the FPN.
    """

    def __init__(self, backbone: nn.Module, reductions: tuple[int, ...], fpn: FeaturePyramidNetwork, channels: int):
        super().__init__()
        self.body = backbone
        self.fpn = fpn
        self.reductions = reductions
        self.out_channels = channels

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        levels = zip(self.reductions, self.body(images), strict=True)
        return self.fpn(OrderedDict((str(stride), level) for stride, level in levels))


def build_backbone(
    name: str, strides: tuple[int, ...], weights: str
) -> tuple[nn.Module, tuple[int, ...], tuple[int, ...]]:
    """Build a timm backbone that returns its maps at those of `strides` that it has.

    weights: `default` (timm's pretrained weights, downloaded), `none`, a file, or a run folder; see `load_backbone`.
    Returns the module, the strides of its maps and their widths, fine to coarse.
    Raises UserError if timm has no such model, if the model has none of the strides or accepts images of one size
    only, or if the weights can't be loaded.
    """
    if not timm.is_model(name):
        raise UserError(f"backbone {name!r}: timm has no such model{nearest(name, timm.list_models())}")
    try:
        reductions = _feature_info(_feature_extractor(name)).reduction()
    except (RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        message = f"backbone {name!r}: timm can't extract feature maps from it ({reason}); choose another backbone"
        raise UserError(message) from None
    deepest = {stride: index for index, stride in enumerate(reductions)}  # the last map of each stride
    available = tuple(stride for stride in strides if stride in deepest)
    if not available:
        problem = f"its maps have strides {reductions}, none of model.strides {strides}"
        raise UserError(f"backbone {name!r}: {problem}; choose --model.strides among them")
    backbone = _feature_extractor(name, out_indices=tuple(deepest[stride] for stride in available))
    load_backbone(backbone, name, weights)
    if getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        backbone = ChannelsFirst(backbone)
    if _has_fixed_size(name):
        _check_any_size(backbone, name, available)
    return backbone, available, tuple(_feature_info(backbone).channels())


def _has_fixed_size(name: str) -> bool:
    """True if timm declares that the model accepts images of one size, as most transformers do."""
    config = timm.get_pretrained_cfg(name)
    return config is not None and config.fixed_input_size


def _feature_extractor(name: str, **options: Any) -> nn.Module:
    """The timm feature extractor with random weights, built for images of any size if timm has an option for that."""
    for size_options in ANY_SIZE_OPTIONS if _has_fixed_size(name) else ():
        try:
            return timm.create_model(name, features_only=True, pretrained=False, **options, **size_options)
        except TypeError:  # this family does not know the option
            continue
    return timm.create_model(name, features_only=True, pretrained=False, **options)


@torch.no_grad()
def _check_any_size(backbone: nn.Module, name: str, strides: tuple[int, ...]) -> None:
    """Raises UserError unless the backbone accepts images of any size. Else the run would fail at its first step."""
    height, width = 96, 160  # 3 x 5 cells of stride 32, which no usual window size divides
    backbone.eval()
    try:
        shapes = [tuple(level.shape[-2:]) for level in backbone(torch.zeros(1, 3, height, width))]
    except (AssertionError, RuntimeError):
        shapes = []
    backbone.train()
    if shapes != [(height // stride, width // stride) for stride in strides]:
        example = "swin_tiny_patch4_window7_224"
        raise UserError(
            f"backbone {name!r}: accepts images of one size only; choose another backbone, such as {example}"
        )


def _feature_info(backbone: nn.Module) -> FeatureInfo:
    info = backbone.feature_info
    assert isinstance(info, FeatureInfo)
    return info


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with 32 groups as published, or gcd(32, channels) groups if 32 does not divide the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


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


def check_strides(strides: tuple[int, ...]) -> None:
    """Raises UserError unless each stride is twice the one before, as in any feature pyramid."""
    if any(coarse != 2 * fine for fine, coarse in itertools.pairwise(strides)):
        raise UserError(f"model.strides {strides}: each stride must be twice the one before, such as 8,16,32")


def check_channels(kind: str, channels: int, divisor: int) -> None:
    """Raises UserError unless the detector `kind` can split its width into parts of equal size."""
    if channels % divisor:
        multiple = divisor * max(1, round(channels / divisor))
        raise UserError(f"model.channels {channels}: {kind} needs a multiple of {divisor}, such as {multiple}")


def build_neck(
    name: str,
    strides: tuple[int, ...],
    channels: int,
    weights: str,
    pooled: bool = False,
    bottom_up: bool = False,
    convolution: Convolution = plain_convolution,
) -> Neck:
    """Build a timm backbone with an FPN that has one level per stride of `strides`, fine to coarse.

    weights: see `load_backbone`. pooled, bottom_up, convolution: see `feature_pyramid`.
    Raises UserError if the backbone does not fit the strides or the weights do not fit the backbone.
    """
    check_strides(strides)
    backbone, available, widths = build_backbone(name, strides, weights)
    if available != strides[: len(available)]:
        problem = f"backbone {name!r} has no map of stride {strides[0]}, only of strides {available}"
        raise UserError(f"model.strides {strides}: {problem}; begin with stride {available[0]}")
    fpn = feature_pyramid(widths, channels, len(strides) - len(available), pooled, bottom_up, convolution)
    return Neck(backbone, available, fpn, channels)


def neck_of(config: ModelConfig, backbone: str, pooled: bool = False) -> Neck:
    """Build the backbone and the neck of a detector. pooled: see `feature_pyramid`. Raises as `build_neck`."""
    return build_neck(
        backbone,
        config.strides,
        config.channels,
        config.backbone_weights,
        pooled,
        bottom_up=config.neck == "pafpn",
        convolution=partial(SeparableConv, norm=None) if config.depthwise else plain_convolution,
    )
