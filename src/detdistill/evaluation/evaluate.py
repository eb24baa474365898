"""A detector over a data set, into COCO's numbers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, cast

import torch
from torch import distributed, nn

from detdistill.evaluation.coco import coco_metrics, to_results
from detdistill.types import Batch, Detector, Targets


def evaluate(
    detector: Detector,
    loader: Iterable[tuple[Batch, Targets]],
    ground_truth: Mapping[str, Any],
    category_ids: Sequence[int],
    names: Mapping[int, str],
    device: torch.device | str,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics as `coco_metrics` gives them, and the COCO results behind them in the order of the ground truth's images.

    The detector is on `device` already; the mode of each of its modules is put back afterwards. With several processes each shows its share
    of the images, all return the same, and an image that came twice counts once. Raises ValueError where the images shown are not
    those of the ground truth: the number would be of another set than it says.
    """
    found: dict[int, list[dict[str, Any]]] = {}
    # no_grad and not inference_mode: what a detector caches here (anchors, positions) must serve its next training step.
    with evaluating(detector), torch.no_grad():
        for batch, _ in loader:
            moved = batch.to(device)
            detections = detector.detect(moved)
            results = iter(to_results(detections, moved, category_ids))
            for image, own in zip(batch.ids.tolist(), detections, strict=True):
                found[image] = list(islice(results, len(own.scores)))
    found = _gather(found)
    wanted = [image["id"] for image in ground_truth["images"]]
    if found.keys() != set(wanted):
        odd = sorted(found.keys() ^ set(wanted))
        raise ValueError(
            f"{len(found)} images were shown, the ground truth has {len(wanted)}; image {odd[0]} is in one of them only"
        )
    everything = [result for image in wanted for result in found[image]]
    return coco_metrics(ground_truth, everything, names), everything


@contextmanager
def evaluating(detector: Detector) -> Iterator[None]:
    """Evaluation mode, and after it each module's own mode again: a norm that was frozen in a training model stays frozen."""
    modes = {module: module.training for module in cast(nn.Module, detector).modules()}
    detector.train(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _gather(found: dict[int, list[dict[str, Any]]]) -> dict[int, list[dict[str, Any]]]:
    """The results of all processes, by image; of an image that several have seen, those of the first."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return found
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, found)
    whole: dict[int, list[dict[str, Any]]] = {}
    for part in parts:
        for image, results in part.items():
            whole.setdefault(image, results)
    return whole
