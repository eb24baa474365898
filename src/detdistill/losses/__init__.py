"""Loss functions on tensors, in one flat import.

Every function is pure. The student comes before the teacher, and the docstring states the reduction.
"""

from detdistill.losses.attention import (
    attention_distance,
    attentions,
    channel_wise,
    focal_distance,
    masked_generation,
    squared_distance,
    weighted_entropy,
    weighted_square,
)
from detdistill.losses.boxes import bounded_regression, giou_distance, log_iou_distance, paired_iou, pairwise_giou
from detdistill.losses.contrast import contrast_scores, noise_contrast, unit
from detdistill.losses.features import (
    decoupled_mse,
    hierarchical_context,
    hint_distance,
    masked_squares,
    match_statistics,
    pearson_distance,
    region_distance,
    region_squares,
    standardize,
    token_cosine,
)
from detdistill.losses.logits import (
    decoupled_kl,
    edge_kl,
    quality_focal,
    relation_match,
    soft_cross_entropy,
    softmax_kl,
)
from detdistill.losses.queries import (
    query_costs,
    query_similarity,
    relation_contrast,
    soft_class_costs,
    soft_class_distance,
    soft_class_entropy,
    target_aware_distance,
)
from detdistill.losses.reduce import weighted_mean
from detdistill.losses.relations import attention_norm, attention_transfer, pkt, relation_distance
