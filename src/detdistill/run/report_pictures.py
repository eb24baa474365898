"""The images on which distillation changed most, drawn with the boxes of each model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from detdistill import evaluation
from detdistill.data import Record
from detdistill.errors import UserError, plural
from detdistill.report import Example, Picture, picture
from detdistill.run.report_models import MIN_SCORE, Judged, Truth
from detdistill.run.report_runs import PLAIN, Group, Run

SHOWN = 4  # images that were helped, and as many that were hurt
LEAST = 0.5  # AP; a smaller change of an image is not shown


@dataclass(frozen=True)
class Gallery:
    """helped, hurt: the most extreme first. problem: why images are missing, or an empty text."""

    helped: Sequence[Example]
    hurt: Sequence[Example]
    problem: str = ""


def gallery(
    group: Group, label: str, truth: Truth, judged: Mapping[Path, Judged], teacher: Judged | None
) -> Gallery:
    """The images that the models of `label` changed most, against the plain student: by the mean over the seeds of the
    change in AP of the image alone.

    Without a plain student, `hurt` has the images with the lowest AP. The boxes are those of the pair of runs whose
    change is nearest to the mean.
    """
    after = [run for run in group.runs[label] if run.folder in judged]
    before = {run.recipe.train.seed: run for run in group.runs.get(PLAIN, ()) if run.folder in judged}
    if not after:
        return Gallery((), (), "The runs have no predictions.json, so their boxes can't be drawn.")
    values = {run.folder: evaluation.image_precision(judged[run.folder].matches) for run in [*after, *before.values()]}
    if label == PLAIN or not before:
        score = np.mean([values[run.folder] for run in after], axis=0)
        order = [index for index in np.argsort(score) if np.isfinite(score[index])][:SHOWN]
        drawn = [(index, {label: after[0]}) for index in order]
        return _drawn([], drawn, truth, judged, values, group, teacher)
    pairs = [(before[run.recipe.train.seed], run) for run in after if run.recipe.train.seed in before]
    pairs = pairs or [(next(iter(before.values())), after[0])]
    changes = np.array([values[new.folder] - values[old.folder] for old, new in pairs])  # (P, I)
    mean = changes.mean(axis=0)
    order = [int(index) for index in np.argsort(-mean) if np.isfinite(mean[index])]
    helped = [index for index in order if mean[index] >= LEAST][:SHOWN]
    hurt = [index for index in reversed(order) if mean[index] <= -LEAST][:SHOWN]

    def typical(index: int) -> dict[str, Run]:
        old, new = pairs[int(np.abs(changes[:, index] - mean[index]).argmin())]
        return {PLAIN: old, label: new}

    chosen = [[(index, typical(index)) for index in indices] for indices in (helped, hurt)]
    return _drawn(*chosen, truth, judged, values, group, teacher)


def _drawn(
    helped: Sequence[tuple[int, Mapping[str, Run]]],
    hurt: Sequence[tuple[int, Mapping[str, Run]]],
    truth: Truth,
    judged: Mapping[Path, Judged],
    values: Mapping[Path, np.ndarray],
    group: Group,
    teacher: Judged | None,
) -> Gallery:
    """The chosen images with their boxes. Images that can't be read are left out, and the problem says so."""
    problems = []

    def examples(chosen: Sequence[tuple[int, Mapping[str, Run]]]) -> list[Example]:
        made = []
        for index, runs in chosen:
            record = truth.split.records[index]
            boxes = {label: judged[run.folder] for label, run in runs.items()}
            if taught := teacher or next((judged[run.folder] for run in group.teachers if run.folder in judged), None):
                boxes["teacher"] = taught
            try:
                pictures = _pictures(record, boxes, truth)
            except UserError as error:
                problems.append(str(error))
                continue
            several = len({run.recipe.train.seed for runs in group.runs.values() for run in runs}) > 1
            seed = next(iter(runs.values())).recipe.train.seed
            name = f"{record.name}, seed {seed}" if several else record.name
            made.append(Example(name, {label: float(values[run.folder][index]) for label, run in runs.items()}, pictures))
        return made

    gained, lost = examples(helped), examples(hurt)
    problem = f"{plural(len(problems), 'image')} can't be shown: {problems[0]}" if problems else ""
    return Gallery(gained, lost, problem)


def _pictures(record: Record, boxes: Mapping[str, Judged], truth: Truth) -> list[Picture]:
    """The ground truth, and the boxes of each model with a score of at least MIN_SCORE. Raises UserError."""
    image, classes = record.image(), truth.split.classes
    drawing = evaluation.draw(image, record.boxes, record.labels, None, classes)
    description = f"{record.name}: {plural(len(record.labels), 'object')} of the ground truth"
    pictures = [picture("ground truth", description, drawing)]
    index = {category: number for number, category in enumerate(truth.split.category_ids)}
    for label, each in boxes.items():
        own = [row for row in each.results if row["image_id"] == record.id and row["score"] >= MIN_SCORE]
        corners = torch.tensor([row["bbox"] for row in own], dtype=torch.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        labels = torch.tensor([index[row["category_id"]] for row in own], dtype=torch.int64)
        scores = torch.tensor([row["score"] for row in own])
        drawing = evaluation.draw(image, corners, labels, scores, classes)
        description = f"{record.name}: {plural(len(own), 'box')} of {label} with a score of {MIN_SCORE} or more"
        pictures.append(picture(label, description, drawing))
    return pictures
