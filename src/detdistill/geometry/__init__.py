"""Pure functions of boxes, anchors and matches. Boxes are xyxy in pixels of the padded batch."""

from detdistill.geometry.anchors import cell_points, square_anchors
from detdistill.geometry.boxes import centerness, centers, side_distances, to_boxes
from detdistill.geometry.match import atss_assign, fcos_assign

__all__ = ["atss_assign", "cell_points", "centerness", "centers", "fcos_assign", "side_distances", "square_anchors", "to_boxes"]
