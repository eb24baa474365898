"""Does a trained detector look broken? Its weights, its classes, and what it detects on a sample of images."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from detdistill.data import EvalLoader, Split
from detdistill.detectors.statistics import IMAGENET, UNCHANGED, PixelStatistics
from detdistill.errors import NAMED, plural, some
from detdistill.evaluation.coco import coco_metrics, to_results
from detdistill.evaluation.evaluate import evaluating
from detdistill.inspection.findings import Finding
from detdistill.recipe import DataConfig
from detdistill.types import Batch, Detections, Detector, Need

FLAT = 0.05  # scores differ by less: no image shows the detector anything
CONFIDENT = 0.05  # a detection with a lower score does not count as one
GAIN, FACTOR = 3.0, 1.25  # an AP that is higher by both is clearly higher
TRIED = 16  # images on which other pixel statistics are tried
OTHERS = {
    "ImageNet's": IMAGENET,
    "0.5 and 0.5": PixelStatistics((0.5,) * 3, (0.5,) * 3),
    "0 and 1": UNCHANGED,
}
"""Pixel statistics, in words, that most weights were trained with."""


@dataclass(frozen=True)
class Sample:
    """What a detector found on some images, on the classes that it shares with the data.

    AP, AP50: 0 to 100; None without objects. agnostic: AP50 if all classes were one. images: number of them. empty: of
    those with objects, the number without a detection of at least CONFIDENT. with_objects: number of those. spread: the
    highest score of a prediction above the median, over the first batch; None for a model without scores. others: the
    AP with other pixel statistics, and under "own" with its own, on the first images.
    """

    AP: float | None
    AP50: float | None
    agnostic: float | None
    images: int
    empty: int
    with_objects: int
    spread: float | None
    others: dict[str, float]


def weight_findings(detector: Detector) -> list[Finding]:
    """NaN and infinity among the weights, and norms whose statistics no training has changed."""
    state = detector.state_dict()
    wrong = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    found = []
    if wrong:
        text = f"{plural(len(wrong), 'tensor')} of {len(state)} hold NaN or infinity"
        remedy = "its training diverged or the file is damaged; take an earlier checkpoint, or train again"
        found.append(Finding("not-finite", "problem", len(wrong), text, tuple(wrong[:NAMED]), remedy))
    means = [value for name, value in state.items() if name.endswith("running_mean")]
    variances = [value for name, value in state.items() if name.endswith("running_var")]
    if means and not any(value.any() for value in means) and all((value == 1).all() for value in variances):
        text = f"the statistics of all {plural(len(means), 'batch norm')} have their initial values"
        remedy = "the detector was never trained, or its weights were not loaded; check the file"
        found.append(Finding("untrained", "problem", len(means), text, (), remedy))
    return found


def class_findings(known: Sequence[str], classes: Sequence[str]) -> list[Finding]:
    """Classes of the data that the detector does not know. known: its own classes."""
    missing = [name for name in classes if name not in known]
    if not missing or not known:
        return []
    remedy = "classes are matched by name; name them alike, or use a teacher that was trained on them"
    if len(missing) == len(classes):
        text = f"it knows {some(known)}, and none of the {plural(len(classes), 'class', 'classes')} of the data"
        return [Finding("classes", "problem", len(missing), text, tuple(missing[:NAMED]), remedy)]
    text = f"it does not know {len(missing)} of the {plural(len(classes), 'class', 'classes')} of the data"
    return [Finding("classes", "warning", len(missing), text, tuple(missing[:NAMED]), remedy)]


def look(
    detector: Detector, split: Split, config: DataConfig, batch_size: int, own: PixelStatistics | None
) -> Sample | None:
    """What the detector finds on the images of `split`; None if it shares no class with the data.

    It must be on its device. own: its pixel statistics; None does not try others. Its weights must be finite.
    """
    shared = [name for name in detector.info.classes if name in split.classes]
    if not shared:
        return None
    device = next(detector.parameters()).device
    loader = EvalLoader(split, config, batch_size=batch_size)
    batches = [batch.to(device) for batch, _ in loader]
    with evaluating(detector), torch.no_grad():
        found = [detector.detect(batch) for batch in batches]
        spread = _spread(detector, batches[0])
        ap, at_50, agnostic = _precisions(detector, split, batches, found, shared)
        others: dict[str, float] = {}
        few = batches[: max(1, TRIED // batch_size)]
        if own is not None and ap is not None:
            part = replace(split, records=split.records[: sum(map(len, few))])
            tried = {"own": own} | {name: other for name, other in OTHERS.items() if not _equal(other, own)}
            for name, other in tried.items():
                seen = found if name == "own" else [detector.detect(_as_if(batch, own, other)) for batch in few]
                value = _precisions(detector, part, few, seen[: len(few)], shared)[0]
                if value is not None:
                    others[name] = value
    best = [image.scores.max().item() if len(image.scores) else 0.0 for images in found for image in images]
    filled = [bool((~record.crowd).any()) for record in split.records]
    empty = sum(full and score < CONFIDENT for full, score in zip(filled, best, strict=True))
    return Sample(ap, at_50, agnostic, len(split), empty, sum(filled), spread, others)


def sample_findings(sample: Sample, floor: float) -> list[Finding]:
    """What looks wrong in a sample. floor: an AP (0 to 100) below which a teacher is probably broken."""
    found = []
    if sample.spread is not None and sample.spread < FLAT:
        text = f"its scores are nearly the same everywhere: the highest is {sample.spread:.3f} above the median"
        remedy = "its weights look random; check that the file holds a trained detector"
        found.append(Finding("flat-scores", "problem", 1, text, (), remedy))
    if sample.with_objects and sample.empty > sample.with_objects / 2:
        images = f"{sample.empty} of {plural(sample.with_objects, 'image')} with objects"
        text = f"{images} get no detection above {CONFIDENT:g}"
        remedy = "check its weights, the image size and the normalization"
        found.append(Finding("empty", "warning", sample.empty, text, (), remedy))
    if sample.AP is not None and floor > sample.AP:
        text = f"its AP of {sample.AP:.1f} on {plural(sample.images, 'image')} is below teacher.floor {floor:g}"
        remedy = "check that it is trained, on these classes, and for this image size"
        found.append(Finding("weak", "problem", 1, text, (), remedy))
    if sample.AP50 is not None and sample.agnostic is not None and _clearly(sample.agnostic, sample.AP50, factor=2):
        text = f"AP50 is {sample.AP50:.1f}, but {sample.agnostic:.1f} if all classes count as one"
        remedy = "its boxes are right and its classes are not; check the order of the class names in its weights"
        found.append(Finding("class-order", "problem", 1, text, (), remedy))
    others = dict(sample.others)
    own = others.pop("own", None)
    if own is not None and others:
        name, value = max(others.items(), key=lambda item: item[1])
        if _clearly(value, own):
            text = f"AP is {value:.1f} with the pixel mean and deviation {name}, and {own:.1f} with its own"
            mean, std = (",".join(f"{number:g}" for number in numbers) for numbers in OTHERS[name])
            flags = f"--teacher.model.mean {mean} and --teacher.model.std {std}"
            remedy = f"set {flags}; a run folder has them in its model.json"
            found.append(Finding("normalization", "problem", 1, text, (), remedy))
    return found


def _clearly(value: float, than: float, factor: float = FACTOR) -> bool:
    return value >= than + GAIN and value >= factor * than


def _spread(detector: Detector, batch: Batch) -> float | None:
    """The highest score of a valid prediction above the median of their highest scores."""
    stages = detector.observe(batch, need=Need(predictions=True)).stages
    if not stages:
        return None
    scores = stages[-1].scores().amax(-1)[stages[-1].valid]
    return (scores.max() - scores.median()).item() if len(scores) else 0.0


def _precisions(
    detector: Detector,
    split: Split,
    batches: Iterable[Batch],
    found: Iterable[Sequence[Detections]],
    shared: Sequence[str],
) -> tuple[float | None, float | None, float | None]:
    """AP and AP50 on the shared classes, and AP50 of all classes as one."""
    truth = split.ground_truth()
    ids = {category["name"]: category["id"] for category in truth["categories"]}
    names = {ids[name]: name for name in shared}
    order = [ids.get(name, -1) for name in detector.info.classes]
    results: list[dict[str, Any]] = []
    for batch, images in zip(batches, found, strict=True):
        results += [result for result in to_results(images, batch, order) if result["category_id"] in names]
    metrics = coco_metrics(truth, results, names)
    one = next(iter(names))
    merged: Mapping[str, Any] = truth | {
        "annotations": [item | {"category_id": one} for item in truth["annotations"] if item["category_id"] in names]
    }
    together = coco_metrics(merged, [result | {"category_id": one} for result in results], {one: "object"})
    return metrics["AP"], metrics["AP50"], together["AP50"]


def _as_if(batch: Batch, own: PixelStatistics, other: PixelStatistics) -> Batch:
    """The batch, changed so that a detector with the statistics `own` sees it as one with `other` would."""
    mean, std, other_mean, other_std = (
        torch.tensor(values, device=batch.images.device).view(1, 3, 1, 1) for values in (*own, *other)
    )
    return replace(batch, images=(batch.images.float() / 255 - other_mean) / other_std * std + mean)


def _equal(first: PixelStatistics, second: PixelStatistics) -> bool:
    return torch.allclose(torch.tensor(first), torch.tensor(second), atol=1e-3)
