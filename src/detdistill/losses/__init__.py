"""Pure functions: tensors in, tensor out, student first, teacher second, the reduction stated. One flat import."""

from detdistill.losses.boxes import giou_distance, log_iou_distance, paired_iou
from detdistill.losses.features import match_statistics, pearson_distance, standardize
from detdistill.losses.logits import decoupled_kl, edge_kl, quality_focal, softmax_kl
from detdistill.losses.reduce import mean_over_processes

__all__ = [
    "decoupled_kl",
    "edge_kl",
    "giou_distance",
    "log_iou_distance",
    "match_statistics",
    "mean_over_processes",
    "paired_iou",
    "pearson_distance",
    "quality_focal",
    "softmax_kl",
    "standardize",
]
