"""Distillation methods, one paper a file."""

from detdistill.methods.chen2017 import Chen2017
from detdistill.methods.crosskd import CrossKD
from detdistill.methods.crosskd_roi import CrossKDRoI
from detdistill.methods.cwd import CWD
from detdistill.methods.dkd import DKD
from detdistill.methods.fgd import FGD
from detdistill.methods.frs import FRS
from detdistill.methods.kd import KD
from detdistill.methods.method import Method
from detdistill.methods.mgd import MGD
from detdistill.methods.mimicking import Mimicking
from detdistill.methods.pkd import PKD
from detdistill.methods.proposal_kd import ProposalKD

METHODS: dict[str, type[Method]] = {
    "pkd": PKD,
    "crosskd": CrossKD,
    "mimicking": Mimicking,
    "chen2017": Chen2017,
    "crosskd_roi": CrossKDRoI,
    "dkd": DKD,
    "kd": KD,
    "proposal_kd": ProposalKD,
    "cwd": CWD,
    "fgd": FGD,
    "frs": FRS,
    "mgd": MGD,
}

__all__ = [
    "CWD",
    "DKD",
    "FGD",
    "FRS",
    "KD",
    "METHODS",
    "MGD",
    "PKD",
    "Chen2017",
    "CrossKD",
    "CrossKDRoI",
    "Method",
    "Mimicking",
    "ProposalKD",
]
