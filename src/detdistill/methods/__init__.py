"""Distillation methods, one paper a file."""

from detdistill.methods.at import AttentionTransfer
from detdistill.methods.bckd import BCKD
from detdistill.methods.chen2017 import Chen2017
from detdistill.methods.clockdistill import CLoCKDistill
from detdistill.methods.crd import CRD
from detdistill.methods.crosskd import CrossKD
from detdistill.methods.crosskd_roi import CrossKDRoI
from detdistill.methods.cwd import CWD
from detdistill.methods.defeat import DeFeat
from detdistill.methods.detrdistill import DETRDistill
from detdistill.methods.dist import DIST
from detdistill.methods.dkd import DKD
from detdistill.methods.fgd import FGD
from detdistill.methods.fgfi import FGFI
from detdistill.methods.fitnets import FitNets
from detdistill.methods.frs import FRS
from detdistill.methods.gid import GID
from detdistill.methods.go_lsd import GOLSD
from detdistill.methods.kd import KD
from detdistill.methods.kddetr import KDDETR
from detdistill.methods.ld import LD
from detdistill.methods.method import Method
from detdistill.methods.mgd import MGD
from detdistill.methods.mimic2017 import Mimic2017
from detdistill.methods.mimicking import Mimicking
from detdistill.methods.pkd import PKD
from detdistill.methods.pkt import PKT
from detdistill.methods.proposal_kd import ProposalKD
from detdistill.methods.reviewkd import ReviewKD
from detdistill.methods.token_alignment import TokenAlignment

FAMILIES: dict[str, tuple[type[Method], ...]] = {
    "the neck's features": (PKD, FitNets, AttentionTransfer, ReviewKD, CWD, MGD, FGD, FGFI, DeFeat, FRS, TokenAlignment),
    "dense predictions": (CrossKD, Mimicking, LD, BCKD),
    "what RoI heads say": (KD, DKD, DIST, ProposalKD, CrossKDRoI, Chen2017),
    "features of instances": (GID, Mimic2017, PKT, CRD),
    "set predictions": (DETRDistill, KDDETR, GOLSD, CLoCKDistill),
}
"""What a method reads, and the methods that do; the order is that of every list and table."""

METHODS: dict[str, type[Method]] = {method.name: method for family in FAMILIES.values() for method in family}

__all__ = [
    "BCKD",
    "CRD",
    "CWD",
    "DIST",
    "DKD",
    "FAMILIES",
    "FGD",
    "FGFI",
    "FRS",
    "GID",
    "GOLSD",
    "KD",
    "KDDETR",
    "LD",
    "METHODS",
    "MGD",
    "PKD",
    "PKT",
    "AttentionTransfer",
    "CLoCKDistill",
    "Chen2017",
    "CrossKD",
    "CrossKDRoI",
    "DETRDistill",
    "DeFeat",
    "FitNets",
    "Method",
    "Mimic2017",
    "Mimicking",
    "ProposalKD",
    "ReviewKD",
    "TokenAlignment",
]
