"""Distillation methods, one file per method. METHODS is their only list.

To add a method, add one import and one entry here.
"""

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
from detdistill.methods.gid_ld import GIDLD
from detdistill.methods.go_lsd import GOLSD
from detdistill.methods.kd import KD
from detdistill.methods.kddetr import KDDETR
from detdistill.methods.ld import LD
from detdistill.methods.method import Method as Method
from detdistill.methods.mgd import MGD
from detdistill.methods.mimic2017 import Mimic2017
from detdistill.methods.mimicking import Mimicking
from detdistill.methods.pkd import PKD
from detdistill.methods.pkt import PKT
from detdistill.methods.proposal_kd import ProposalKD
from detdistill.methods.reviewkd import ReviewKD
from detdistill.methods.token_alignment import TokenAlignment

METHODS: dict[str, type[Method]] = {
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
    "token_alignment": TokenAlignment,
    "crosskd": CrossKD,
    "mimicking": Mimicking,
    "ld": LD,
    "bckd": BCKD,
    "kd": KD,
    "dkd": DKD,
    "dist": DIST,
    "proposal_kd": ProposalKD,
    "crosskd_roi": CrossKDRoI,
    "chen2017": Chen2017,
    "gid": GID,
    "gid_ld": GIDLD,
    "mimic2017": Mimic2017,
    "pkt": PKT,
    "crd": CRD,
    "detrdistill": DETRDistill,
    "kddetr": KDDETR,
    "go_lsd": GOLSD,
    "clockdistill": CLoCKDistill,
}
"""Every method by name. Lists and tables follow this order. `--import` adds the user's own methods."""


def by_group() -> dict[str, list[type[Method]]]:
    """The methods of each `group`, in the order of METHODS."""
    groups: dict[str, list[type[Method]]] = {}
    for method in METHODS.values():
        groups.setdefault(method.group, []).append(method)
    return groups
