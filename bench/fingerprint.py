"""Train three pairs for three seeded steps and print the SHA-256 of the student's weights.

    python bench/fingerprint.py [--json FILE]

The values must be equal before and after a change that must not change numbers.
The script uses only the command line, so the same file runs on any commit.
"""

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file

COMMON = shlex.split(
    "--data shapes:8 --image-size 96 --batch-size 4 --max-steps 3 --seed 7 --device cpu --backbone-weights none"
)
DENSE = shlex.split("--model.strides 8,16,32 --model.channels 32 --model.tower-depth 2")
TWO_STAGE = shlex.split("--model.strides 4,8,16,32 --model.channels 32 --model.rois 32")
QUERIES = shlex.split("--model.strides 8,16,32 --model.channels 32 --model.queries 12 --model.decoder-layers 2")
PAIRS = {
    "gfl crosskd": ("gfl", "crosskd", DENSE),
    "faster_rcnn kd": ("faster_rcnn", "kd", TWO_STAGE),
    "deformable_detr detrdistill": ("deformable_detr", "detrdistill", QUERIES),
}


def run(*arguments: str) -> None:
    """Run one command of detdistill on one thread. Raises CalledProcessError if it fails."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "detdistill", *arguments]
    subprocess.run(command, check=True, env=os.environ | threads, stdout=subprocess.DEVNULL)


def digest(weights: Path) -> str:
    """SHA-256 of the names, shapes and bytes of all tensors, sorted by name."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(load_file(weights).items()):
        sha256.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
    return sha256.hexdigest()


def fingerprint(head: str, method: str, model_flags: list[str], folder: Path) -> str:
    """The digest of a student after three distillation steps. Its teacher is also trained for three steps."""
    teacher, student = folder / "teacher", folder / "student"
    run("train", "--model", f"{head}:resnet18", *COMMON, *model_flags, "--out", str(teacher))
    pair = ["--student", f"{head}:mobilenetv3_small_050", "--teacher", str(teacher), "--teacher.allow-weak"]
    run("distill", *pair, "--method", method, *COMMON, *model_flags, "--out", str(student))
    return digest(student / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the digests to this file")
    options = parser.parse_args()
    digests = {}
    for name, (head, method, model_flags) in PAIRS.items():
        with tempfile.TemporaryDirectory() as folder:
            digests[name] = fingerprint(head, method, model_flags, Path(folder))
        print(f"{name}: {digests[name]}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(digests, indent=2) + "\n")


if __name__ == "__main__":
    main()
