"""The images on which distillation changed most, drawn with the boxes of each model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from detdistill import evaluation
from detdistill.data import Record
from detdistill.errors import UserError, plural
from detdistill.reporting import SIDE, Example, Picture, picture
from detdistill.run.report_models import MIN_SCORE, Judged, Truth
from detdistill.run.report_runs import PLAIN, Group, Run

SHOWN = 4  # images that were helped, and as many that were hurt
LABELED = 10  # boxes of a picture that have texts; more texts would hide the objects
LEAST = 0.5  # AP; a smaller change of an image is not shown


@dataclass(frozen=True)
class Gallery:
    """helped, hurt: the most extreme first. problem: why images are missing, or an empty text."""

    helped: Sequence[Example]
    hurt: Sequence[Example]
    problem: str = ""


def gallery(group: Group, label: str, truth: Truth, judged: Mapping[Path, Judged], teacher: Judged | None) -> Gallery:
    """The images that the models of `label` changed most, against the plain student, in AP of the image alone. An
    image counts with the smallest change over the seeds, and not at all if the seeds disagree.

    Without a plain student, `hurt` has the images with the lowest AP. The boxes are those of the pair of runs whose
    change is nearest to the mean. teacher: its boxes if it has no run folder.
    """
    after = [run for run in group.runs[label] if run.folder in judged]
    before = {run.recipe.train.seed: run for run in group.runs.get(PLAIN, ()) if run.folder in judged}
    if not after:
        return Gallery((), (), "The runs have no predictions.json, so their boxes can't be drawn.")
    teacher = teacher or next((judged[run.folder] for run in group.teachers if run.folder in judged), None)
    artist = Artist(truth, judged, teacher, with_seed=len(after) > 1)
    if label == PLAIN or not before:
        values = np.mean([artist.values(run) for run in after], axis=0)  # (I,)
        lowest = [int(index) for index in np.argsort(values) if np.isfinite(values[index])][:SHOWN]
        hurt = [artist.example(index, {label: after[0]}) for index in lowest]
        return artist.gallery([], hurt)
    pairs = [(before[run.recipe.train.seed], run) for run in after if run.recipe.train.seed in before]
    pairs = pairs or [(next(iter(before.values())), after[0])]
    changes = np.array([artist.values(new) - artist.values(old) for old, new in pairs])  # (P, I)
    mean, least, most = changes.mean(axis=0), changes.min(axis=0), changes.max(axis=0)

    def example(index: int) -> Example | None:
        old, new = pairs[int(np.abs(changes[:, index] - mean[index]).argmin())]
        return artist.example(index, {PLAIN: old, label: new})

    helped = [int(index) for index in np.argsort(-least, kind="stable") if least[index] >= LEAST][:SHOWN]
    worst = [int(index) for index in np.argsort(most, kind="stable") if most[index] <= -LEAST][:SHOWN]
    return artist.gallery([example(index) for index in helped], [example(index) for index in worst])


@dataclass(frozen=True)
class Artist:
    """Draws images with the boxes of several models. problems: of images that could not be read. known:
    values that were computed before.
    """

    truth: Truth
    judged: Mapping[Path, Judged]
    teacher: Judged | None
    with_seed: bool
    problems: list[str] = field(default_factory=list)
    known: dict[Path, np.ndarray] = field(default_factory=dict)

    def values(self, run: Run) -> np.ndarray:
        """AP of each image alone, (I,)."""
        if run.folder not in self.known:
            self.known[run.folder] = evaluation.image_precision(self.judged[run.folder].matches)
        return self.known[run.folder]

    def example(self, index: int, runs: Mapping[str, Run]) -> Example | None:
        """An image with the boxes of these runs and of the teacher, or None if it can't be read."""
        record = self.truth.split.records[index]
        boxes = {label: self.judged[run.folder] for label, run in runs.items()}
        if self.teacher is not None:
            boxes["teacher"] = self.teacher
        try:
            pictures = _pictures(record, boxes, self.truth)
        except UserError as error:
            self.problems.append(str(error))
            return None
        seed = next(iter(runs.values())).recipe.train.seed
        name = f"{record.name}, seed {seed}" if self.with_seed else record.name
        return Example(name, {label: float(self.values(run)[index]) for label, run in runs.items()}, pictures)

    def gallery(self, helped: Sequence[Example | None], hurt: Sequence[Example | None]) -> Gallery:
        """The examples that could be drawn, and what is wrong with the others."""
        count = len(self.problems)
        problem = f"{plural(count, 'image')} can't be shown: {self.problems[0]}" if count else ""
        drawn = [[each for each in examples if each is not None] for examples in (helped, hurt)]
        return Gallery(drawn[0], drawn[1], problem)


def _pictures(record: Record, boxes: Mapping[str, Judged], truth: Truth) -> list[Picture]:
    """The ground truth, and the boxes of each model with a score of at least MIN_SCORE. Raises UserError."""
    image, classes = record.image(), truth.split.classes
    scale = min(1.0, SIDE / max(image.size))  # texts are drawn after the reduction, so that they can be read
    image = image.resize((round(image.width * scale) or 1, round(image.height * scale) or 1))
    few = len(record.labels) <= LABELED
    drawing = evaluation.draw(
        image, record.boxes * scale, record.labels, None, classes, longer_side=SIDE, with_text=few
    )
    description = f"{record.name}: {plural(len(record.labels), 'object')} of the ground truth"
    pictures = [picture("ground truth", description, drawing)]
    index = {category: number for number, category in enumerate(truth.split.category_ids)}
    for label, each in boxes.items():
        own = [row for row in each.results if row["image_id"] == record.id and row["score"] >= MIN_SCORE]
        corners = torch.tensor([row["bbox"] for row in own], dtype=torch.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        labels = torch.tensor([index[row["category_id"]] for row in own], dtype=torch.int64)
        scores = torch.tensor([row["score"] for row in own])
        few = len(own) <= LABELED
        drawing = evaluation.draw(image, corners * scale, labels, scores, classes, longer_side=SIDE, with_text=few)
        description = f"{record.name}: {plural(len(own), 'box')} of {label} with a score of {MIN_SCORE} or more"
        pictures.append(picture(label, description, drawing))
    return pictures
