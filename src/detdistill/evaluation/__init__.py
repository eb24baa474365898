"""Quality and cost of a detector: COCO metrics, confidence intervals, drawings, speed."""

from detdistill.evaluation.bootstrap import average_precision, gain_interval, match, resample
from detdistill.evaluation.coco import coco_metrics, coco_results, to_original, to_results
from detdistill.evaluation.drawing import draw, side_by_side
from detdistill.evaluation.evaluate import evaluate, evaluating
from detdistill.evaluation.speed import cost, count_operations, noise_batch
from detdistill.evaluation.tiling import merge_windows, tile_windows
