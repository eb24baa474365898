"""Where each published number was read. A method without a source has no number here."""

_LD = "table of the README of LD's code (commit 4287990), which lists several methods on one GFL"

SOURCES = {
    "pkd": "mmrazor's README of PKD (commit 90c7af1)",
    "fitnets": _LD,
    "cwd": "README of the authors' detection code; the paper's own table says 40.8",
    "mgd": "table of the README of MGD's code (commit 2c9da0b); mmrazor reports the same",
    "fgd": "table of the README of FGD's code (commit c03a6cf)",
    "fgfi": _LD,
    "defeat": "abstract of the paper; which teacher it refers to could not be verified",
    "frs": "FRS paper, as other papers quote it",
    "crosskd": "table of the README of CrossKD's code (commit 87e156a)",
    "ld": _LD,
    "bckd": "table of the README of BCKD's code (commit 121c9aa)",
    "dist": "DIST paper, as other papers quote it",
    "gid": "GID paper, as other papers quote it; there is no official code",
    "gid_ld": _LD,
    "detrdistill": "README of DETRDistill's code (commit b5ee33d), and table 3 of the paper",
    "kddetr": "KD-DETR paper, as other papers quote it; the public code is empty",
}
