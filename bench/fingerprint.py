"""Three seeded steps of three pairs, and the SHA-256 of the student's weights: equal before and after a change that must not change numbers.

    python bench/fingerprint.py [--json FILE]

It calls the command line only, so the same file runs on any commit.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file

SHARED = [
    "--data",
    "shapes:8",
    "--image-size",
    "96",
    "--batch-size",
    "4",
    "--max-steps",
    "3",
    "--seed",
    "7",
    "--device",
    "cpu",
]
SHARED += ["--backbone-weights", "none"]
DENSE = ["--model.strides", "8,16,32", "--model.channels", "32", "--model.tower-depth", "2"]
TWO_STAGE = ["--model.strides", "4,8,16,32", "--model.channels", "32", "--model.rois", "32"]
QUERIES = [
    "--model.strides",
    "8,16,32",
    "--model.channels",
    "32",
    "--model.queries",
    "12",
    "--model.decoder-layers",
    "2",
]
PAIRS = {
    "gfl crosskd": ("gfl", "crosskd", DENSE),
    "faster_rcnn kd": ("faster_rcnn", "kd", TWO_STAGE),
    "deformable_detr detrdistill": ("deformable_detr", "detrdistill", QUERIES),
}


def run(*arguments: str) -> None:
    """One command of detdistill on one thread. Raises CalledProcessError where it fails."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "detdistill", *arguments],
        check=True,
        env=os.environ | threads,
        stdout=subprocess.DEVNULL,
    )


def digest(weights: Path) -> str:
    """SHA-256 of names, shapes and bytes of all tensors, in the order of their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(load_file(weights).items()):
        found.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def fingerprint(head: str, method: str, size: list[str], folder: Path) -> str:
    """The student's weights after three steps taught by a teacher that was itself trained for three steps."""
    teacher, student = folder / "teacher", folder / "student"
    run("train", "--model", f"{head}:resnet18", *SHARED, *size, "--out", str(teacher))
    distilled = [
        "--student",
        f"{head}:mobilenetv3_small_050",
        "--teacher",
        str(teacher),
        "--teacher.allow-weak",
        "--method",
        method,
    ]
    run("distill", *distilled, *SHARED, *size, "--out", str(student))
    return digest(student / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the digests to this file")
    arguments = parser.parse_args()
    found = {}
    for name, (head, method, size) in PAIRS.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = fingerprint(head, method, size, Path(folder))
        print(f"{name}: {found[name]}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
