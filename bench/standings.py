"""The table of `detdistill compare` over runs that were made one by one, such as those of a method's parts.

    python bench/standings.py FOLDER [--teacher RUN] [--resamples 1000]

FOLDER/LABEL/SEED are finished runs of one recipe but for methods and seed, FOLDER/none/SEED those without a method. Prints the table as markdown. Of
labels that lack a seed the others have, and of what is not finished, it says so and leaves them out.
"""

import argparse
import sys
from pathlib import Path

from detdistill.data import open_data
from detdistill.errors import UserError
from detdistill.runfolder import RunFolder
from detdistill.standings import PLAIN, markdown, rows


def collect(folder: Path) -> dict[str, list[Path]]:
    """Finished runs by label, in the order of the plain ones' seeds. Raises UserError without a plain run, and where recipes differ."""
    plain = [run.parent for run in sorted(folder.glob(f"{PLAIN}/*/metrics.json"))]
    if not plain:
        raise UserError(f"{folder}: no finished run {PLAIN}/SEED, the plain training that gains are measured against")
    seeds = [run.name for run in plain]
    labels = sorted({path.parents[1].name for path in folder.glob("*/*/recipe.yaml")} - {PLAIN})
    found = {PLAIN: plain}
    for label in labels:
        runs = [folder / label / seed for seed in seeds]
        lacking = [run.name for run in runs if not RunFolder(run).finished]
        if lacking:
            print(f"{label}: left out, no finished run {', '.join(lacking)}", file=sys.stderr)
        else:
            found[label] = runs
    first = _shared(plain[0])
    for run in (run for runs in found.values() for run in runs):
        if _shared(run) != first:
            raise UserError(f"{run}/recipe.yaml: another model, data or schedule than {plain[0]}'s; a table has one")
    return found


def _shared(run: Path) -> dict[str, object]:
    """What all runs of a table have in common."""
    recipe = RunFolder(run).recipe()
    if recipe is None:
        raise UserError(f"{run}: no recipe.yaml, not a run folder")
    return recipe.model_dump(include={"model": True, "data": True, "train": True}) | {"train": recipe.train.model_copy(update={"seed": 0})}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--teacher", type=Path, metavar="RUN", help="a run folder, for the share of the gap")
    parser.add_argument("--resamples", type=int, default=1000, help="of the test images")
    given = parser.parse_args()
    try:
        found = collect(given.folder)
        recipe = RunFolder(found[PLAIN][0]).recipe()
        assert recipe is not None
        data = open_data(recipe.data)
        split = data.evaluation_split(recipe.data)
        teacher = RunFolder(given.teacher).metrics()["AP"] if given.teacher else None
        told = rows(found, teacher, data, split, recipe.train.batch_size, given.resamples)
    except (UserError, OSError) as error:
        print(f"standings: {error}", file=sys.stderr)
        return 2
    table = {"student": recipe.model.name, "teacher": {"AP": teacher}, "data": recipe.data.path, "split": split.name, "images": len(split)}
    print(markdown(table | {"seeds": [run.name for run in found[PLAIN]], "rows": told, "stopped": {}}), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
