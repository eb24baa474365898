"""Data sets of several layouts, built-in shapes, and the loaders for training and evaluation."""

from detdistill.data.batch import EvalLoader, TrainLoader, collate
from detdistill.data.examples import Example
from detdistill.data.faults import Faults
from detdistill.data.layout import open_data
from detdistill.data.records import Data, Record, Split
from detdistill.data.samples import collate_samples
from detdistill.data.sources import read_images

__all__ = [
    "Data",
    "EvalLoader",
    "Example",
    "Faults",
    "Record",
    "Split",
    "TrainLoader",
    "collate",
    "collate_samples",
    "open_data",
    "read_images",
]
