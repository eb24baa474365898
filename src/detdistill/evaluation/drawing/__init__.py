"""Pictures of detections, made to be shown to others."""

from detdistill.evaluation.drawing.colors import class_colors, color
from detdistill.evaluation.drawing.draw import draw
from detdistill.evaluation.drawing.labels import Memory
from detdistill.evaluation.drawing.sheet import side_by_side
