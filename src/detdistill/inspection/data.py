"""A data set before a run: what it holds, and what a person should look at. Nothing is changed or trained."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detdistill.data import Data, Record
from detdistill.data.records import spread
from detdistill.errors import NAMED, plural
from detdistill.inspection.counts import SplitCounts, class_counts, health_findings, split_counts, split_findings
from detdistill.inspection.duplicates import duplicates
from detdistill.inspection.findings import Finding, verdict, worst_first
from detdistill.inspection.members import Members, members, roles, separate
from detdistill.inspection.pixels import Glance, glances
from detdistill.inspection.samples import choose, draw_samples
from detdistill.inspection.sizes import BoxSizes, ImageSizes, box_sizes, image_sizes, size_findings
from detdistill.inspection.suspicious import suspicious
from detdistill.recipe import DataConfig

LOOKED_AT = 20_000  # images whose pixels are decoded; of more, this many are drawn evenly


@dataclass(frozen=True)
class Inspection:
    """What is known of a data set before a run.

    layout: coco, voc, yolo or shapes. splits: all, by name. classes: for each class name, its objects per split.
    compared: the splits that should have no image in common, the training split first; all below is about them.
    images, boxes: their sizes. total: number of images. looked_at: the images whose pixels were decoded.
    findings: the worst first. samples: the files of the drawn images, if they were drawn.
    """

    layout: str
    splits: dict[str, SplitCounts]
    classes: dict[str, dict[str, int]]
    compared: tuple[str, ...]
    images: ImageSizes
    boxes: BoxSizes
    total: int
    looked_at: int
    findings: tuple[Finding, ...]
    samples: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """One line: the number of findings, and the worst of them."""
        return verdict(self.findings)

    def to_json(self) -> dict[str, Any]:
        """All numbers and findings, as a mapping for a JSON file."""
        return {**asdict(self), "verdict": self.verdict}


def inspect(
    data: Data,
    config: DataConfig,
    *,
    strides: Sequence[int],
    assigners: Sequence[str],
    batch_size: int,
    out: Path | None = None,
) -> Inspection:
    """The inspection of a data set.

    strides: of the model's levels. assigners: names in `coverage.ASSIGNERS`. batch_size: of training, for the padding.
    out: folder for drawn samples; None draws none. Raises UserError if the config names a split that does not exist.
    """
    training, evaluation = roles(data, config)
    splits = separate(data, (training, evaluation))
    everything = members(splits, data.classes)
    picked = spread(everything.records, LOOKED_AT)
    glanced = dict(zip(picked, glances(picked), strict=True))
    images = image_sizes(everything, config, batch_size)
    boxes = box_sizes(everything, config, strides, assigners)
    classes = class_counts(data)
    findings = [
        *_fault_findings(data),
        *_unreadable(everything, glanced),
        *duplicates(splits, glanced, training),
        *split_findings(splits, classes, training, evaluation),
        *size_findings(images, boxes),
        *suspicious(everything),
        *health_findings(splits, classes),
    ]
    samples: list[Path] = []
    if out is not None:
        readable = [record for record in picked if isinstance(glanced[record], Glance)]
        samples = draw_samples(choose(splits, readable), data.classes, out)
    return Inspection(
        data.layout,
        split_counts(data),
        classes,
        tuple(splits),
        images,
        boxes,
        len(everything.records),
        len(picked),
        tuple(worst_first(findings)),
        tuple(map(str, samples)),
    )


def _fault_findings(data: Data) -> list[Finding]:
    """The records that were skipped or repaired while the data set was read."""
    found = []
    skipped = data.faults.skipped
    if skipped:
        count = len(skipped)
        text = f"{plural(count, 'record')} can't be read"
        examples = tuple(f"{Path(file).name}: {problem}" for file, problem in skipped[:NAMED])
        remedy = "a run stops at the first one; correct them, or leave them out with --on-bad-record skip"
        found.append(Finding("unreadable-records", "problem", count, text, examples, remedy))
    for line, names in data.faults.repairs():
        remedy = "a run repairs them in the same way; correct the annotations if that is not what they mean"
        found.append(Finding("repaired", "warning", len(names), line, tuple(names[:NAMED]), remedy))
    return found


def _unreadable(everything: Members, glanced: Mapping[Record, Glance | str]) -> list[Finding]:
    """The images that can't be decoded."""
    examples = []
    for index, record in enumerate(everything.records):
        problem = glanced.get(record)
        if isinstance(problem, str):
            examples.append(f"{everything.file(index)}: {problem}")
    if not examples:
        return []
    text = f"{plural(len(examples), 'image')} can't be decoded"
    remedy = "restore the files; a run stops at the first one, or leaves them out with --on-bad-record skip"
    return [Finding("unreadable-images", "problem", len(examples), text, tuple(examples[:NAMED]), remedy)]
