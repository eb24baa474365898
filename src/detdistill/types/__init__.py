"""The language of the house: what flows between data, detectors, methods and the engine.

Every box is xyxy in pixels of the padded batch. Axes: B images, C channels, H W cells, N predictions, K classes, Q queries,
A anchors a cell, R bins, D embedding, G ground truths, L stages. Sizes are (height, width).
"""

from detdistill.types.data import Batch, Detections, Targets, TrainState
from detdistill.types.detector import Detector
from detdistill.types.info import DetectorInfo, EdgeInfo, GridInfo, Need, ProposalInfo, QueryInfo, TowerInfo
from detdistill.types.outputs import (
    Activation,
    Assignment,
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
