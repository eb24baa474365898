"""Facts on a detector that its exported file and the record beside it hold."""

import statistics
import time
from importlib.metadata import version
from typing import Any

import torch

from detdistill.detectors.normalization import statistics_of
from detdistill.evaluation import count_operations, noise_batch
from detdistill.exporting.card import ExportCard
from detdistill.types import MULTIPLE, Batch, Detector

TIMED = 20  # runs of one image, of which the median is taken
FIRST = 3  # runs that are not counted, because the libraries choose their kernels in them


def make_card(
    detector: Any,
    category_ids: tuple[int | str, ...],
    size: tuple[int, int],
    canvas: tuple[int, int] | None,
    precision: str,
) -> ExportCard:
    """The description that goes into the file. canvas: the fixed padded size, or None."""
    pixels = statistics_of(detector)
    batch = noise_batch(size)
    with torch.no_grad():
        rules = detector.candidates(batch)
        operations = count_operations(lambda: detector.detect(batch))
    return ExportCard(
        head=detector.info.kind,
        classes=detector.info.classes,
        category_ids=category_ids,
        image_size=size,
        multiple=MULTIPLE if canvas is None else None,
        canvas=canvas or (0, 0),
        mean=None if pixels is None else pixels.mean,
        std=None if pixels is None else pixels.std,
        precision=precision,
        threshold=rules.threshold,
        detections=rules.limit,
        parameters=sum(parameter.numel() for parameter in detector.parameters()),
        operations=operations,
        version=version("detdistill"),
    )


def latencies(detector: Detector, exported: Detector, batch: Batch) -> dict[str, float | int]:
    """Milliseconds of one image in PyTorch and in the file's runtime, measured in turn, with torch's threads."""
    times: dict[str, list[float]] = {"torch_ms": [], "file_ms": []}
    with torch.no_grad():
        for turn in range(TIMED + FIRST):
            for name, side in zip(times, (detector, exported), strict=True):
                begin = time.perf_counter()
                side.detect(batch)
                if turn >= FIRST:
                    times[name].append(1000 * (time.perf_counter() - begin))
    return {**{name: statistics.median(values) for name, values in times.items()}, "threads": torch.get_num_threads()}
