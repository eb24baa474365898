"""Print the table of `detdistill compare` for runs that were made one by one, for example the parts of a method.

    python bench/standings.py FOLDER [--teacher RUN] [--resamples 1000]

FOLDER/LABEL/SEED are finished runs. Their recipes differ only in methods and seed. FOLDER/none/SEED are the runs
without a method. The table is printed as markdown. A seed is left out if its run without a method is not finished. A
label is left out if one of its seeds is not finished. Both are reported on stderr.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from detdistill.data import open_data
from detdistill.engine.checkpoint import flat
from detdistill.errors import UserError
from detdistill.recipe import Recipe
from detdistill.run.folder import RunFolder
from detdistill.run.setup import RESULT_FREE
from detdistill.run.standings import PLAIN, markdown, rows

Runs = dict[str, list[Path]]


def collect(folder: Path) -> Runs:
    """The finished runs by label, each in the order of the seeds of the plain runs.

    Raises UserError if no plain run is finished, or if recipes or seeds differ.
    """
    started = [run.parent for run in sorted(folder.glob(f"{PLAIN}/*/recipe.yaml"))]
    plain = [run for run in started if RunFolder(run).finished]
    if not plain:
        raise UserError(f"{folder}: no finished run {PLAIN}/SEED, the plain training that gains are measured against")
    _report_unfinished("seeds", [run for run in started if run not in plain])
    runs = {PLAIN: plain}
    for label in sorted({path.parents[1].name for path in folder.glob("*/*/recipe.yaml")} - {PLAIN}):
        label_runs = [folder / label / run.name for run in plain]
        unfinished = [run for run in label_runs if not RunFolder(run).finished]
        _report_unfinished(label, unfinished)
        if not unfinished:
            runs[label] = label_runs
    _check_recipes(runs)
    return runs


def _report_unfinished(name: str, unfinished: list[Path]) -> None:
    """Print the runs because of which something is left out. name: a label, or `seeds`."""
    if unfinished:
        print(f"{name}: left out, not finished: {', '.join(map(str, unfinished))}", file=sys.stderr)


def _check_recipes(runs: Runs) -> None:
    """Raises UserError that names the fields in which the recipes of the table differ, except methods.

    Every run is compared with the plain run of its seed, every plain run with the first plain run, and every distilled
    run with the first distilled run. Only the last two comparisons allow different seeds.
    """
    first_plain = runs[PLAIN][0]
    distilled = [run for label, label_runs in runs.items() if label != PLAIN for run in label_runs]
    any_seed = RESULT_FREE["train"] | {"seed"}
    for label, label_runs in runs.items():
        for run, plain in zip(label_runs, runs[PLAIN], strict=True):
            _check_same(run, plain, {"teacher": True, "train": RESULT_FREE["train"]})
            _check_same(plain, first_plain, {"teacher": True, "train": any_seed})
            if label != PLAIN:
                _check_same(run, distilled[0], {"teacher": RESULT_FREE["teacher"], "train": any_seed})


def _check_same(run: Path, reference: Path, ignored: dict[str, Any]) -> None:
    """Raises UserError if the recipes of the two runs differ in a field that is not ignored. Methods may differ."""
    excluded = {**ignored, "methods": True}
    run_fields = flat(_recipe(run).model_dump(mode="json", exclude=excluded))
    reference_fields = flat(_recipe(reference).model_dump(mode="json", exclude=excluded))
    differences = []
    for name, value in run_fields.items():
        reference_value = reference_fields.get(name)
        if value != reference_value:
            differences.append(f"{name} is {value!r} instead of {reference_value!r}")
    if differences:
        raise UserError(
            f"{run}/recipe.yaml differs from the recipe of {reference}: {', '.join(differences)}; all runs of a table "
            "need one recipe: remove one of the two runs"
        )


def _recipe(run: Path) -> Recipe:
    recipe = RunFolder(run).recipe()
    if recipe is None:
        raise UserError(f"{run}: recipe.yaml is missing, so this is not a run folder")
    return recipe


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder with the runs LABEL/SEED")
    parser.add_argument(
        "--teacher", type=Path, metavar="RUN", help="run folder of the teacher, for the share of the gap"
    )
    parser.add_argument("--resamples", type=int, default=1000, help="resamples of the test images, for the intervals")
    options = parser.parse_args()
    try:
        runs = collect(options.folder)
        recipe = _recipe(runs[PLAIN][0])
        data = open_data(recipe.data)
        split = data.evaluation_split(recipe.data)
        teacher = RunFolder(options.teacher).metrics()["AP"] if options.teacher else None
        table = rows(runs, teacher, data, split, recipe.train.images_per_step, options.resamples)
    except (UserError, OSError) as error:
        print(f"standings: {error}", file=sys.stderr)
        return 2
    summary = {
        "student": recipe.model.name,
        "teacher": {"AP": teacher},
        "data": recipe.data.path,
        "split": split.name,
        "images": len(split),
        "seeds": [run.name for run in runs[PLAIN]],
        "rows": table,
        "stopped": {},
    }
    print(markdown(summary), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
