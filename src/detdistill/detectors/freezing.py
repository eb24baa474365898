"""Parts of a backbone that do not train: its batch norms, and its first stages.

A frozen norm keeps its statistics (eval mode) and its affine parameters. A stage ends at a stride: stage 1 is
everything below the map of stride 4, the stem included, stage 2 everything below the map of stride 8, and so on,
whatever the modules of the backbone are called. A vision transformer with maps of one stride has one such stage: what
comes before its blocks, which is the patch embedding.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple, cast

import timm
import torch
from torch import nn

from detdistill.detectors.backbone import batch_norms
from detdistill.detectors.registry import DETECTORS, Group
from detdistill.detectors.timm.examine import examine
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.types import Detector

SIDE = 128  # of the empty image that finds the parameters below a map
FIRST_STRIDE = 4  # at which the first stage ends


class Freezing(NamedTuple):
    """norms: True if the batch norms of the backbone are frozen. stages: number of its first stages that are frozen."""

    norms: bool
    stages: int


DEFAULTS: Mapping[Group, Freezing] = {
    "dense": Freezing(norms=False, stages=0),
    "two-stage": Freezing(norms=False, stages=0),
    "queries": Freezing(norms=True, stages=0),  # published: frozen norms
}
"""What is frozen in a backbone that starts from loaded weights, by the group of the head, unless the recipe says it.
Nothing is frozen in a backbone that starts from random weights. This is the only place of these defaults."""

SAVED: Mapping[Group, Freezing] = {
    "dense": Freezing(norms=False, stages=0),
    "two-stage": Freezing(norms=False, stages=0),
    "queries": Freezing(norms=True, stages=0),
}
"""What was frozen in the run of a model.json without the two fields, which was written before they existed."""


def freezing(config: ModelConfig, defaults: Mapping[Group, Freezing] = DEFAULTS) -> Freezing:
    """What a detector of this config freezes: its two fields, or the default for a field that is None."""
    record = DETECTORS.get(config.name.partition(":")[0])
    default = Freezing(norms=False, stages=0)
    if record is not None and _is_loaded(config):
        default = defaults[record.group]
    return Freezing(
        default.norms if config.freeze_norms is None else config.freeze_norms,
        default.stages if config.freeze_stages is None else config.freeze_stages,
    )


def with_freezing(config: ModelConfig, defaults: Mapping[Group, Freezing] = DEFAULTS) -> ModelConfig:
    """The config with both fields set; see `freezing`."""
    norms, stages = freezing(config, defaults)
    return config.model_copy(update={"freeze_norms": norms, "freeze_stages": stages})


def check_new(config: ModelConfig) -> None:
    """Raises UserError if a new detector of this config would freeze random weights."""
    for field, value in (("freeze_stages", config.freeze_stages), ("freeze_norms", config.freeze_norms)):
        if value and not _is_loaded(config):
            raise UserError(
                f"model.{field} {value}: the backbone starts from random weights (model.backbone_weights none), which "
                "would never train; give it weights, or leave this out"
            )


def freeze(detector: Detector, config: ModelConfig) -> None:
    """Freeze the parts of the detector's backbone that the config names, in place.

    Raises UserError if the backbone does not have as many stages.
    """
    norms, stages = freezing(config)
    module = cast(nn.Module, detector)
    frozen = _stage_parameters(module, config, stages) if stages else []
    if norms:
        inside = set(detector.backbone_parameters())
        frozen += [weight for norm in batch_norms(module) for weight in norm.parameters() if weight in inside]
    for parameter in frozen:
        parameter.requires_grad_(False)
    if frozen:
        module.train(module.training)  # puts the frozen norms into eval mode


def _is_loaded(config: ModelConfig) -> bool:
    """True if the backbone starts from loaded weights."""
    return config.backbone_weights != "none"


def _stage_parameters(detector: nn.Module, config: ModelConfig, count: int) -> list[nn.Parameter]:
    """The parameters of the first `count` stages of the detector's backbone. Raises UserError if it has fewer."""
    backbone = config.name.partition(":")[2]
    if not timm.is_model(backbone):
        raise UserError(
            f"model.freeze_stages {count}: the backbone {backbone!r} is not one of timm, so its stages are unknown; "
            "leave it out, or choose a timm backbone"
        )
    parameters = dict(detector.named_parameters())
    stages = _stages(backbone)
    prefix = _prefix(parameters, stages[-1])
    # A detector without coarse levels holds the first stages of its backbone only.
    present = [stage for stage in stages if all(prefix + name in parameters for name in stage)]
    if len(present) < count:
        raise UserError(
            f"model.freeze_stages {count}: the backbone {backbone!r} of this detector has {len(present)} "
            f"stage{'' if len(present) == 1 else 's'} that can be frozen; set it to {len(present)} or less"
        )
    return [parameters[prefix + name] for name in present[count - 1]]


@cache
@torch.enable_grad()
def _stages(backbone: str) -> tuple[tuple[str, ...], ...]:
    """Names of the parameters of a timm feature extractor below the end of each stage; each holds the one before.

    They are the parameters that have a gradient at the stage's map, so no names of modules need to be known.
    """
    extractor = examine(backbone)
    with extractor.dry():
        body: Any = extractor.create(tuple(extractor.maps)).eval()
        parameters = dict(body.named_parameters())
        if extractor.is_plain:
            return (_before_blocks(parameters, body.feature_info.module_name(0)),)
        maps = extractor.fit(body, tuple(extractor.maps))(torch.zeros(1, 3, SIDE, SIDE))
    deepest = dict(zip(extractor.maps, maps, strict=True))
    stages = []
    for stride in sorted(stride for stride in deepest if stride >= FIRST_STRIDE):
        total = deepest[stride].sum()
        gradients = torch.autograd.grad(total, list(parameters.values()), retain_graph=True, allow_unused=True)
        reached = [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
        stages.append(tuple(reached))
    return tuple(stages)


def _before_blocks(parameters: Iterable[str], block: str) -> tuple[str, ...]:
    """The names before the first block of a vision transformer. block: name of one of its blocks, as `blocks.9`."""
    blocks = f"{block.rpartition('.')[0]}."
    names = list(parameters)
    first = next(index for index, name in enumerate(names) if name.removeprefix("model.").startswith(blocks))
    return tuple(names[:first])


def _prefix(parameters: Iterable[str], names: Iterable[str]) -> str:
    """The prefix of the backbone in the names of a detector: that under which most of `names` exist."""
    wanted, known = list(names), set(parameters)
    prefixes = [name.removesuffix(wanted[0]) for name in known if name.endswith(wanted[0])]
    return max(sorted(prefixes), key=lambda prefix: sum(prefix + name in known for name in wanted), default="")
