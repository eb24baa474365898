"""Pure functions of boxes, anchors and matches. Boxes are xyxy in pixels of the padded batch."""

from detdistill.geometry.anchors import cell_points, square_anchors
from detdistill.geometry.boxes import centerness, centers, side_distances, to_boxes
from detdistill.geometry.match import atss_assign, fcos_assign
from detdistill.geometry.rois import box_levels, pool_rois

__all__ = [
    "atss_assign",
    "box_levels",
    "cell_points",
    "centerness",
    "centers",
    "fcos_assign",
    "pool_rois",
    "side_distances",
    "square_anchors",
    "to_boxes",
]
