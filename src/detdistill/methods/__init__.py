"""Distillation methods, one paper a file."""

from detdistill.methods.crosskd import CrossKD
from detdistill.methods.method import Method
from detdistill.methods.mimicking import Mimicking
from detdistill.methods.pkd import PKD

METHODS: dict[str, type[Method]] = {
    "pkd": PKD,
    "crosskd": CrossKD,
    "mimicking": Mimicking,
}

__all__ = ["METHODS", "PKD", "CrossKD", "Method", "Mimicking"]
