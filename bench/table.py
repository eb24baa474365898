"""One student, many methods, many seeds: a table of AP with its spread, from normal run folders.

    python bench/table.py --data DATA --recipe bccd --model gfl:mobilenetv2_035 --teacher runs/teacher --seeds 3 --out runs/table \
        --methods none mimicking pkd crosskd pkd,crosskd [--epochs 10] [--set methods.pkd.weight=4 ...]

Every run is a folder OUT/LABEL-eEPOCHS-sSEED. A finished one is not run again and an unfinished one is resumed, so the table can be stopped and
started. Seeds are the outer loop: after the first pass every method has one seed. It ends by writing OUT/table.json and printing the table.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from detdistill import run
from detdistill.recipe import Recipe, load, nested


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipe", required=True, help="a file, or a name of `detdistill list recipes`")
    parser.add_argument("--model", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--methods", nargs="+", default=["none", "mimicking", "pkd", "crosskd", "pkd,crosskd"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int)
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=VALUE", help="recipe fields; those of methods go to runs that use the method"
    )
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def recipe_of(options: argparse.Namespace, methods: Sequence[str], seed: int) -> Recipe:
    """The recipe of one run."""
    fields: dict[str, Any] = {"model.name": options.model, "data.path": options.data, "train.seed": seed}
    if options.epochs:
        fields["train.epochs"] = options.epochs
    if methods:
        fields["teacher.path"] = options.teacher
    pairs = dict(item.split("=", 1) for item in options.set)
    chosen = {
        name: yaml.safe_load(value) for name, value in pairs.items() if not name.startswith("methods.") or name.split(".")[1] in methods
    }
    return load(options.recipe, nested(fields | chosen), methods)


def one(options: argparse.Namespace, label: str, seed: int) -> dict[str, Any]:
    """Metrics of one run, made where they are not there yet."""
    methods = [] if label == "none" else label.split(",")
    recipe = recipe_of(options, methods, seed)
    folder = options.out / f"{label.replace(',', '+')}-e{recipe.train.epochs}-s{seed}"
    metrics = folder / "metrics.json"
    begun = (folder / "checkpoint").exists()  # to resume compares recipes, and leaves a finished run as it is
    verb = run.distill if methods else run.train
    verb(recipe, folder, resume=begun, overwrite=not begun)
    return json.loads(metrics.read_text())


def row(label: str, found: Sequence[dict[str, Any]], plain: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, the spread (largest minus smallest), and the gain over plain training of the same seeds."""
    values = [metrics["AP"] for metrics in found]
    gains = [mine["AP"] - theirs["AP"] for mine, theirs in zip(found, plain, strict=False)]
    return {
        "method": label,
        "AP": round(statistics.mean(values), 2),
        "spread": round(max(values) - min(values), 2),
        "AP50": round(statistics.mean(metrics["AP50"] for metrics in found), 2),
        "seeds": [round(value, 2) for value in values],
        "gain": round(statistics.mean(gains), 2) if gains else None,
        "gains": [round(value, 2) for value in gains],
        "train_seconds": round(statistics.median(metrics["train_seconds"] for metrics in found)),
    }


def main() -> None:
    options = arguments()
    found: dict[str, list[dict[str, Any]]] = {label: [] for label in options.methods}
    for seed in options.seeds:
        for label in options.methods:
            found[label].append(one(options, label, seed))
            print(f"seed {seed} {label}: AP {found[label][-1]['AP']:.2f}", flush=True)
    rows = [row(label, metrics, found.get("none", ())) for label, metrics in found.items()]
    teacher = Path(options.teacher) / "metrics.json"
    result = {"teacher": json.loads(teacher.read_text())["AP"] if teacher.exists() else None, "rows": rows}
    (options.out / "table.json").write_text(json.dumps(result, indent=2))
    print("| method | AP mean | spread | AP50 | gain | gain by seed |\n|---|---|---|---|---|---|")
    for item in rows:
        print(f"| {item['method']} | {item['AP']} | {item['spread']} | {item['AP50']} | {item['gain']} | {item['gains']} |")
    print(f"teacher: {result['teacher']}")


if __name__ == "__main__":
    main()
