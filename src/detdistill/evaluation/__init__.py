"""Quality and cost of a detector: COCO metrics, confidence intervals, drawings, speed."""

from detdistill.evaluation.bootstrap import average_precision, gain_interval, match, resample
from detdistill.evaluation.coco import coco_metrics, to_original, to_results
from detdistill.evaluation.draw import draw
from detdistill.evaluation.evaluate import evaluate, evaluating
from detdistill.evaluation.speed import cost, count_operations, noise_batch
