"""Data sets in COCO, Pascal VOC and YOLO layout or drawn by code, and the loaders that show them to a detector."""

from detdistill.data.batch import EvalLoader, Example, TrainLoader, collate
from detdistill.data.faults import Faults
from detdistill.data.layout import open_data, read_images
from detdistill.data.records import Data, Record, Split

__all__ = [
    "Data",
    "EvalLoader",
    "Example",
    "Faults",
    "Record",
    "Split",
    "TrainLoader",
    "collate",
    "open_data",
    "read_images",
]
