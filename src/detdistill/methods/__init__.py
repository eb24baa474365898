"""Distillation methods, one paper a file."""

from detdistill.methods.at import AttentionTransfer
from detdistill.methods.bckd import BCKD
from detdistill.methods.chen2017 import Chen2017
from detdistill.methods.crd import CRD
from detdistill.methods.crosskd import CrossKD
from detdistill.methods.crosskd_roi import CrossKDRoI
from detdistill.methods.cwd import CWD
from detdistill.methods.defeat import DeFeat
from detdistill.methods.dist import DIST
from detdistill.methods.dkd import DKD
from detdistill.methods.fgd import FGD
from detdistill.methods.fgfi import FGFI
from detdistill.methods.fitnets import FitNets
from detdistill.methods.frs import FRS
from detdistill.methods.gid import GID
from detdistill.methods.kd import KD
from detdistill.methods.ld import LD
from detdistill.methods.method import Method
from detdistill.methods.mgd import MGD
from detdistill.methods.mimic2017 import Mimic2017
from detdistill.methods.mimicking import Mimicking
from detdistill.methods.pkd import PKD
from detdistill.methods.pkt import PKT
from detdistill.methods.proposal_kd import ProposalKD
from detdistill.methods.reviewkd import ReviewKD

METHODS: dict[str, type[Method]] = {
    # the neck's features
    "pkd": PKD,
    "fitnets": FitNets,
    "at": AttentionTransfer,
    "reviewkd": ReviewKD,
    "cwd": CWD,
    "mgd": MGD,
    "fgd": FGD,
    "fgfi": FGFI,
    "defeat": DeFeat,
    "frs": FRS,
    # dense predictions
    "crosskd": CrossKD,
    "mimicking": Mimicking,
    "ld": LD,
    "bckd": BCKD,
    # what RoI heads say
    "kd": KD,
    "dkd": DKD,
    "dist": DIST,
    "proposal_kd": ProposalKD,
    "crosskd_roi": CrossKDRoI,
    "chen2017": Chen2017,
    # features of instances
    "gid": GID,
    "mimic2017": Mimic2017,
    "pkt": PKT,
    "crd": CRD,
}

__all__ = [
    "BCKD",
    "CRD",
    "CWD",
    "DIST",
    "DKD",
    "FGD",
    "FGFI",
    "FRS",
    "GID",
    "KD",
    "LD",
    "METHODS",
    "MGD",
    "PKD",
    "PKT",
    "AttentionTransfer",
    "Chen2017",
    "CrossKD",
    "CrossKDRoI",
    "DeFeat",
    "FitNets",
    "Method",
    "Mimic2017",
    "Mimicking",
    "ProposalKD",
    "ReviewKD",
]
