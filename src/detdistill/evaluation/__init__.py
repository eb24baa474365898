"""Quality and cost of a detector: COCO metrics, confidence intervals, kinds of errors, drawings, speed."""

from detdistill.evaluation.bootstrap import average_precision, gain_interval, image_precision, match, resample
from detdistill.evaluation.coco import coco_metrics, coco_results, coco_run, to_original, to_results
from detdistill.evaluation.drawing import color, draw, side_by_side
from detdistill.evaluation.evaluate import evaluate, evaluating
from detdistill.evaluation.mistakes import KINDS, Confusion, confusion, error_counts, lost_precision, precision_curves
from detdistill.evaluation.speed import cost, count_operations, noise_batch
from detdistill.evaluation.tiling import merge_windows, tile_windows
