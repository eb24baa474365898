"""What kinds of errors a detector makes: TIDE's kinds, confused classes, precision over recall."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detdistill.evaluation.coco import CocoRun

KINDS = {
    "missed": "Miss",
    "wrong class": "Cls",
    "badly placed": "Loc",
    "wrong class and badly placed": "Both",
    "duplicate": "Dupe",
    "background": "Bkg",
}
"""The kinds of errors, and hotcoco's names of them. The definitions are those of TIDE (arXiv:2008.08115)."""
BACKGROUND = "background"


@dataclass(frozen=True, eq=False)
class Confusion:
    """Which classes a detector takes for which.

    classes: the names, K.
    counts: (K + 1, K + 1). Rows: the class of the ground truth; columns: the class of the detection. The last row has
        the detections without an object, the last column the objects without a detection.
    """

    classes: tuple[str, ...]
    counts: np.ndarray


def lost_precision(run: CocoRun) -> dict[str, float]:
    """For each kind of error, by how much AP50 (0..100) would rise without the errors of this kind.

    The gains do not add up, since each one is for this kind alone. run: of `coco_run`, with all results.
    """
    errors = run.tide_errors()
    return {kind: 100 * float(errors["delta_ap"][name]) for kind, name in KINDS.items()}


def error_counts(run: CocoRun) -> dict[str, int]:
    """The number of errors of each kind. run: of `coco_run`, with the detections whose errors count."""
    counts = run.tide_errors()["counts"]
    return {kind: int(counts[name]) for kind, name in KINDS.items()}


def confusion(run: CocoRun, names: Sequence[str], min_score: float) -> Confusion:
    """The confusion of the classes at IoU 0.5, among the detections with a score of at least `min_score`.

    run: of `coco_run`, with all results. names: of the classes, in the order of the rows.
    """
    measured = run.confusion_matrix(iou_thr=0.5, min_score=min_score)
    order = [measured["cat_names"].index(name) for name in names] + [measured["num_cats"]]
    return Confusion(tuple(names), measured["matrix"][np.ix_(order, order)].astype(int))


def precision_curves(run: CocoRun, thresholds: Sequence[float] = (0.5, 0.75)) -> dict[float, np.ndarray]:
    """For each IoU threshold the precision in 0..1 at the recalls 0, 0.01, ..., 1, (101,): the mean over the classes.

    run: of `coco_run`, with all results. thresholds: some of 0.50, 0.55, ..., 0.95. A class without ground truth does
    not count; without any ground truth the precision is NaN.
    """
    run.accumulate()
    assert run.eval is not None
    curves = {}
    for threshold in thresholds:
        row = int(np.abs(np.asarray(run.params.iou_thrs) - threshold).argmin())
        precision = run.eval["precision"][row, :, :, 0, 2]  # (101, K); -1 without ground truth
        measured = precision[:, (precision > -1).all(axis=0)]
        curves[threshold] = measured.mean(axis=1) if measured.size else np.full(len(precision), np.nan)
    return curves
