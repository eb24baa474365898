"""Any module with feature maps as a student or teacher of the feature methods."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from detdistill.detectors.images import normalize
from detdistill.detectors.statistics import UNCHANGED, Channels
from detdistill.errors import UserError
from detdistill.types import Batch, DetectorInfo, DetectorOutput, Need, Pyramid, Targets

PROBE_CELLS = (2, 3)  # rows and columns of the coarsest map on the blank image; unequal, so that no square is assumed


class FeatureModel(nn.Module):
    """A module that returns feature maps, with the interface of `types.Detector`: the pyramid `neck`, no predictions.

    Every method that reads only features takes it as a student or as a teacher; the others refuse it with a reason.

    module: takes images (B, 3, H, W), float.
    strides: pixels per cell of each map, fine to coarse, in ascending order.
    maps: function from what the module returns to the maps (B, C, H, W): a tensor, or a list, tuple or dict of them,
        in the order of `strides`. None: the module returns these itself.
    mean, std: of each channel, for images in 0..1. By default, the module gets the images in 0..1 as they are.
    channels: of each map. None: found by one run of the module on a small blank image.

    Raises UserError if the strides do not ascend, or if the module does not return one map of this size per stride.
    The maps of every batch are checked in the same way.
    """

    def __init__(
        self,
        module: nn.Module,
        strides: Sequence[int],
        *,
        maps: Callable[[Any], Any] | None = None,
        mean: Channels = UNCHANGED.mean,
        std: Channels = UNCHANGED.std,
        channels: Sequence[int] | None = None,
    ):
        super().__init__()
        self.module, self.maps, self.mean, self.std = module, maps, mean, std
        self.name = type(module).__name__
        strides = tuple(strides)
        if not strides or min(strides) < 1 or list(strides) != sorted(set(strides)):
            raise self._error(
                f"the strides are {strides}; give one per map, ascending from fine to coarse, such as 8, 16"
            )
        widths = self._probe(strides) if channels is None else tuple(channels)
        if len(widths) != len(strides):
            raise self._error(f"there are {len(widths)} channels for {len(strides)} strides; give one number per map")
        self.info = DetectorInfo("features", (), strides, {"neck": widths}, "sigmoid")

    def backbone_parameters(self) -> list[nn.Parameter]:
        """All parameters."""
        return list(self.module.parameters())

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        """The pyramid `neck` of a batch. There are no task losses, with or without targets.

        Raises ValueError if `need` asks for anything but this pyramid, and UserError if the maps are wrong.
        """
        require_only_neck(self.name, "a model of features", need)
        return self.output(self.module(normalize(batch, self.mean, self.std)), batch)

    def output(self, result: Any, batch: Batch, losses: Mapping[str, Tensor] | None = None) -> DetectorOutput:
        """The output of a student whose module was run by the training loop itself.

        result: what the module returned for the images of the batch. losses: the loop's own task losses, () each. They
        become the task terms of `Distillation`, with which methods can be balanced. Raises UserError if the maps are
        wrong.
        """
        levels = self._levels(result, batch.images.shape[-2:], self.info.strides)
        for level, stride in zip(levels, self.info.strides, strict=True):
            if level.shape[1] != (width := self.info.width("neck", stride)):
                raise self._error(f"the map of stride {stride} has {level.shape[1]} channels; {width} were declared")
        return DetectorOutput({"neck": Pyramid(levels, self.info.strides, batch.sizes)}, losses=losses or {})

    def detect(self, batch: Batch) -> NoReturn:
        """Raises UserError, because a model of features detects nothing."""
        raise self._error("it gives features only, and can't detect; evaluate it with its own head")

    def _levels(self, result: Any, size: Sequence[int], strides: Sequence[int]) -> tuple[Tensor, ...]:
        """The maps in `result`, checked. size: (height, width) of the images."""
        found = result if self.maps is None else self.maps(result)
        if isinstance(found, Mapping):
            found = list(found.values())
        levels = (found,) if isinstance(found, Tensor) else found
        if not isinstance(levels, list | tuple) or not all(isinstance(level, Tensor) for level in levels):
            kinds = ", ".join(type(level).__name__ for level in levels) if isinstance(levels, list | tuple) else ""
            kind = type(found).__name__ + (f" of {kinds}" if kinds else "")
            remedy = "return a tensor, or a list, tuple or dict of tensors, or select them with maps=FUNCTION"
            raise self._error(f"expected feature maps, got a {kind}; {remedy}")
        if len(levels) != len(strides):
            remedy = "give one stride per map, or select maps with maps=FUNCTION"
            raise self._error(f"it returns {len(levels)} maps, but there are {len(strides)} strides; {remedy}")
        height, width = size
        for index, (level, stride) in enumerate(zip(levels, strides, strict=True)):
            if level.ndim != 4:
                remedy = "feature maps are (B, C, H, W)"
                raise self._error(f"map {index} (stride {stride}) has the shape {tuple(level.shape)}; {remedy}")
            rows, columns = level.shape[-2:]
            # A side that the stride does not divide may be rounded up or down.
            if abs(rows - height / stride) >= 1 or abs(columns - width / stride) >= 1:
                expected = f"{-(-height // stride)} x {-(-width // stride)}"
                raise self._error(
                    f"map {index} has {rows} x {columns} cells on images of {height} x {width} pixels, but stride "
                    f"{stride} gives {expected}; correct the strides, or the order of the maps (fine to coarse)"
                )
        return tuple(levels)

    @torch.no_grad()
    def _probe(self, strides: Sequence[int]) -> tuple[int, ...]:
        """The channels of the maps of a small blank image. The module keeps its mode and its statistics."""
        height, width = (cells * max(strides) for cells in PROBE_CELLS)
        parameter = next(self.module.parameters(), None)
        images = torch.zeros(1, 3, height, width, device=None if parameter is None else parameter.device)
        modes = [(part, part.training) for part in self.module.modules()]
        self.module.eval()
        try:
            result = self.module(images)
        except Exception as error:  # whatever a module of the user's own raises
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            problem = f"it can't process a blank image of {height} x {width} pixels ({reason})"
            raise self._error(f"{problem}; if it needs another size, give channels=(...)") from error
        finally:
            for part, mode in modes:
                part.training = mode
        return tuple(level.shape[1] for level in self._levels(result, (height, width), strides))

    def _error(self, problem: str) -> UserError:
        return UserError(f"FeatureModel({self.name}): {problem}")


def require_only_neck(name: str, kind: str, need: Need, targets: Targets | None = None) -> None:
    """Raises ValueError if a model of features is asked for more than its pyramid. name, kind: for the message."""
    requests = {
        "towers": need.towers,
        "predictions": need.predictions,
        "queries": need.queries,
        "proposals": need.proposals or need.classify,
        "task losses": targets is not None,
    }
    missing = [f"pyramid {pyramid!r}" for pyramid in sorted(need.pyramids - {"neck"})]
    missing += [part for part, is_needed in requests.items() if is_needed]
    if missing:
        raise ValueError(f"{name} is {kind} and has no {', '.join(missing)}; it has the pyramid 'neck' only")
