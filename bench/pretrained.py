"""Train one detector from pretrained weights in several ways, over several seeds, and print the AP of each way.

    python bench/pretrained.py --recipe RECIPE --out FOLDER --ways own imagenet norms stage1 --seeds 3

Ways: `own` uses the pixel statistics of the backbone's pretrained configuration and trains all parts, `imagenet` uses
the statistics of ImageNet, whatever the backbone, `norms` freezes the batch norms of the backbone, and `stage1` also
its first stage. The runs are FOLDER/WAY/SEED. A run that is finished is not made again, and one that was interrupted
goes on.
Rows are printed as markdown: the mean AP, its standard deviation over seeds, and the difference to the first way
with the interval over seeds.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from detdistill import run
from detdistill.detectors.statistics import IMAGENET
from detdistill.recipe import load
from detdistill.run.folder import RunFolder

WAYS: dict[str, dict[str, Any]] = {
    "own": {"freeze_norms": False, "freeze_stages": 0},
    "imagenet": {"mean": IMAGENET.mean, "std": IMAGENET.std, "freeze_norms": False, "freeze_stages": 0},
    "norms": {"freeze_norms": True, "freeze_stages": 0},
    "stage1": {"freeze_norms": True, "freeze_stages": 1},
}


def train(recipe: str, way: str, seed: int, folder: Path) -> float:
    """The AP of one run, which is made unless it is finished."""
    out = folder / way / str(seed)
    if not RunFolder(out).finished:
        resolved = load(recipe, {"model": WAYS[way], "train": {"seed": seed}})
        run.train(resolved, out, resume=(out / "checkpoint").exists(), overwrite=not (out / "checkpoint").exists())
    return float(RunFolder(out).metrics()["AP"])


def row(way: str, values: np.ndarray, first: np.ndarray) -> str:
    """One line of the table. values, first: AP per seed of this way and of the first way."""
    spread = values.std(ddof=1) if len(values) > 1 else float("nan")
    seeds = ", ".join(f"{value:.1f}" for value in values)
    if first is values:
        return f"| {way} | {values.mean():.1f} ± {spread:.1f} | {seeds} | - |"
    gains = values - first
    half = float("nan")
    if len(gains) > 1:
        half = float(stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains)))
    return f"| {way} | {values.mean():.1f} ± {spread:.1f} | {seeds} | {gains.mean():+.1f} ± {half:.1f} |"


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="recipe with model, weights and data")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["own", "imagenet"])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, list[float]] = {way: [] for way in arguments.ways}
    for seed in range(arguments.seeds):
        for way in arguments.ways:
            results[way].append(train(arguments.recipe, way, seed, arguments.out))
            print(f"{way}, seed {seed}: AP {results[way][-1]:.1f}", flush=True)
    first = np.array(results[arguments.ways[0]])
    print("| way | AP, mean and deviation | AP per seed | difference to the first |\n| --- | --- | --- | --- |")
    for way, values in results.items():
        print(row(way, first if way == arguments.ways[0] else np.array(values), first))


if __name__ == "__main__":
    main()
