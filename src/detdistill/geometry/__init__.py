"""Pure functions on boxes, anchors and assignments. Boxes are xyxy in pixels of the padded batch."""

from detdistill.geometry.anchors import cell_points, square_anchors, synthetic_anchors
from detdistill.geometry.boxes import (
    centerness,
    centers,
    expected_distance,
    extents,
    side_distances,
    to_boxes,
    to_pixels,
    to_relative,
)
from detdistill.geometry.instances import disagreement, general_instances, strongest
from detdistill.geometry.match import adaptive_thresholds, atss_assign, fcos_assign
from detdistill.geometry.pairs import pair_all, pair_queries
from detdistill.geometry.regions import (
    ThinBoxes,
    ValuableRegion,
    covered_cells,
    decoupled_regions,
    focal_masks,
    imitation_cells,
    imitation_region,
    valuable_region,
)
from detdistill.geometry.rois import box_levels, pool_rois
