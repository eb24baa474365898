"""What a detector is, before a run: size, operations, levels, and what its head has."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from detdistill.detectors.normalization import statistics_of
from detdistill.errors import UserError
from detdistill.evaluation.evaluate import evaluating
from detdistill.evaluation.speed import noise_batch, operations
from detdistill.types import Detector, Need


@dataclass(frozen=True)
class ModelFacts:
    """A detector, or a model that gives features.

    head: its kind. parameters, trained: numbers of weights, and of those that train. operations: of `detect` for one
    image; a multiplication and an addition are two. None for a model that gives features only. strides: of its levels.
    channels: widths of its pyramids by name. classes: names. mean, std: of the pixels it expects; None if not known.
    tower_depth, tower_channels: of a dense head. edge_bins: of its side distances. predictions: rows of its last
    stage for one image. stages: of predictions. queries, proposals: their number.
    """

    head: str
    parameters: int
    trained: int
    operations: int | None
    strides: tuple[int, ...]
    channels: dict[str, int | tuple[int, ...]]
    classes: tuple[str, ...]
    activation: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    tower_depth: int | None
    tower_channels: int | None
    edge_bins: int | None
    predictions: int | None
    stages: int
    queries: int | None
    proposals: int | None


def model_facts(detector: Detector, image_size: tuple[int, int]) -> ModelFacts:
    """The facts about a detector. It runs on one image of noise of this (height, width). It is moved to the CPU.

    Raises UserError if the image is too small for it.
    """
    info = detector.info
    weights = list(cast(nn.Module, detector.to("cpu")).parameters())
    detects = bool(info.classes)
    statistics = statistics_of(detector)
    need = Need(predictions=detects, queries=info.queries is not None, proposals=info.proposals is not None)
    try:
        with evaluating(detector), torch.no_grad():
            output = detector.observe(noise_batch(image_size), need=need)
    except ValueError as error:  # a norm over a map of one cell
        problem = f"{info.kind} with strides {info.strides} can't read one image of {image_size} pixels ({error})"
        raise UserError(f"image size: {' '.join(problem.split())}; give a larger --image-size") from None
    own = output.queries.own if output.queries is not None else None
    parts = [] if own is None else [part for part in (own.content, own.position, own.reference) if part is not None]
    return ModelFacts(
        head=info.kind,
        parameters=sum(weight.numel() for weight in weights),
        trained=sum(weight.numel() for weight in weights if weight.requires_grad),
        operations=operations(detector, image_size) if detects else None,
        strides=info.strides,
        channels=dict(info.channels),
        classes=info.classes,
        activation=info.activation,
        mean=None if statistics is None else tuple(statistics.mean),
        std=None if statistics is None else tuple(statistics.std),
        tower_depth=None if info.towers is None else info.towers.depth,
        tower_channels=None if info.towers is None else info.towers.channels,
        edge_bins=None if info.edges is None else info.edges.bins,
        predictions=output.stages[-1].logits.shape[1] if output.stages else None,
        stages=len(output.stages),
        queries=parts[0].shape[1] if parts else None,
        proposals=None if output.proposals is None else output.proposals.boxes.shape[1],
    )
