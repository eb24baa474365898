"""The types that data sets, detectors, methods and the engine exchange.

Every box is xyxy in pixels of the padded batch, unless a docstring says otherwise. Sizes are (height, width).
Axes: B images, C channels, H W cells, N predictions, K classes, Q queries, L stages, A anchors per cell, R bins,
D embedding, G ground truths, P proposals.
"""

from detdistill.types.data import MULTIPLE, Batch, Detections, Targets, TrainState, padded_size
from detdistill.types.detector import Detector
from detdistill.types.info import DetectorInfo, EdgeInfo, GridInfo, Need, ProposalInfo, QueryInfo, TowerInfo
from detdistill.types.outputs import (
    Activation,
    Assignment,
    Classify,
    DetectorOutput,
    Layout,
    Predictions,
    Proposals,
    Pyramid,
    Queries,
    QueryPart,
    QuerySet,
    Towers,
    TowerState,
    required,
)
