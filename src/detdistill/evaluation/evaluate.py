"""Evaluation of a detector on a data set."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, cast

import torch
from torch import distributed, nn

from detdistill.evaluation.coco import coco_metrics, to_results
from detdistill.types import Batch, Detector, Targets

ResultsByImage = dict[int, list[dict[str, Any]]]


def evaluate(
    detector: Detector,
    loader: Iterable[tuple[Batch, Targets]],
    ground_truth: Mapping[str, Any],
    category_ids: Sequence[int | str],
    names: Mapping[Any, str],
    device: torch.device | str,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The metrics of `coco_metrics`, and the COCO results in the order of the images of the ground truth.

    detector: must be on `device` already. Afterwards each of its modules has its former mode again.
    loader: with several processes, each process passes its share of the images. All processes return the same result,
        and an image that occurs twice counts once.
    category_ids: the category id of each class. names: the class names by category id.
    Raises ValueError if the images of the loader are not those of the ground truth. The metrics would be those of
    another set of images.
    """
    results: ResultsByImage = {}
    # no_grad and not inference_mode: tensors that a detector caches here (anchors, positions) are used in training.
    with evaluating(detector), torch.no_grad():
        for batch, _ in loader:
            moved = batch.to(device)
            detections = detector.detect(moved)
            batch_results = iter(to_results(detections, moved, category_ids))
            for image, image_detections in zip(batch.ids.tolist(), detections, strict=True):
                results[image] = list(islice(batch_results, len(image_detections.scores)))
    results = _gather(results)
    image_ids = [image["id"] for image in ground_truth["images"]]
    if results.keys() != set(image_ids):
        unmatched = sorted(results.keys() ^ set(image_ids))
        raise ValueError(
            f"the loader gave {len(results)} images, but the ground truth has {len(image_ids)}; "
            f"image {unmatched[0]} is in only one of them"
        )
    ordered = [result for image in image_ids for result in results[image]]
    return coco_metrics(ground_truth, ordered, names), ordered


@contextmanager
def evaluating(detector: Detector) -> Iterator[None]:
    """Set the detector to evaluation mode, and restore the former mode of each module afterwards.

    A norm that was frozen inside a training model therefore stays frozen.
    """
    modes = {module: module.training for module in cast(nn.Module, detector).modules()}
    detector.train(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _gather(results: ResultsByImage) -> ResultsByImage:
    """The results of all processes by image. If several processes have an image, the first process counts."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return results
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, results)
    gathered: ResultsByImage = {}
    for part in parts:
        for image, image_results in part.items():
            gathered.setdefault(image, image_results)
    return gathered
