"""The table of `detdistill compare` over runs that were made one by one, such as those of a method's parts.

    python bench/standings.py FOLDER [--teacher RUN] [--resamples 1000]

FOLDER/LABEL/SEED are finished runs of one recipe but for methods and seed, FOLDER/none/SEED those without a method. Prints the table as markdown. Of
seeds whose plain run is not finished, and of labels that lack a seed, it says so and leaves them out.
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
from detdistill.run.standings import PLAIN, markdown, rows
from detdistill.run.training import FREE


def collect(folder: Path) -> dict[str, list[Path]]:
    """Finished runs by label, in the order of the plain ones' seeds. Raises UserError without a plain run, and where recipes or seeds differ."""
    begun = [run.parent for run in sorted(folder.glob(f"{PLAIN}/*/recipe.yaml"))]
    plain = [run for run in begun if RunFolder(run).finished]
    if not plain:
        raise UserError(f"{folder}: no finished run {PLAIN}/SEED, the plain training that gains are measured against")
    _tell("seeds", [run for run in begun if run not in plain])
    found = {PLAIN: plain}
    for label in sorted({path.parents[1].name for path in folder.glob("*/*/recipe.yaml")} - {PLAIN}):
        runs = [folder / label / run.name for run in plain]
        lacking = [run for run in runs if not RunFolder(run).finished]
        _tell(label, lacking)
        if not lacking:
            found[label] = runs
    _same_recipe(found)
    return found


def _tell(what: str, lacking: list[Path]) -> None:
    if lacking:
        print(f"{what}: left out, not finished: {', '.join(map(str, lacking))}", file=sys.stderr)


def _same_recipe(found: dict[str, list[Path]]) -> None:
    """Raises UserError naming the fields in which runs of one seed, or of one table, differ."""
    taught = [run for label, runs in found.items() if label != PLAIN for run in runs]
    for label, runs in found.items():
        for run, plain in zip(runs, found[PLAIN], strict=True):
            _same(run, plain, {"teacher": True, "train": FREE["train"]})
            _same(plain, found[PLAIN][0], {"teacher": True, "train": FREE["train"] | {"seed"}})
            if label != PLAIN:
                _same(run, taught[0], {"teacher": FREE["teacher"], "train": FREE["train"] | {"seed"}})


def _same(run: Path, other: Path, free: dict[str, Any]) -> None:
    mine, theirs = (
        flat(_recipe(one).model_dump(mode="json", exclude={**free, "methods": True})) for one in (run, other)
    )
    changed = [
        f"{name} is {mine.get(name)!r} and there {theirs.get(name)!r}"
        for name in mine
        if mine.get(name) != theirs.get(name)
    ]
    if changed:
        raise UserError(
            f"{run}/recipe.yaml is not {other}'s: {', '.join(changed)}; a table has one recipe, take one of the runs out"
        )


def _recipe(run: Path) -> Recipe:
    recipe = RunFolder(run).recipe()
    if recipe is None:
        raise UserError(f"{run}: no recipe.yaml, not a run folder")
    return recipe


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--teacher", type=Path, metavar="RUN", help="a run folder, for the share of the gap")
    parser.add_argument("--resamples", type=int, default=1000, help="of the test images")
    given = parser.parse_args()
    try:
        found = collect(given.folder)
        recipe = _recipe(found[PLAIN][0])
        data = open_data(recipe.data)
        split = data.evaluation_split(recipe.data)
        teacher = RunFolder(given.teacher).metrics()["AP"] if given.teacher else None
        told = rows(found, teacher, data, split, recipe.train.batch_size, given.resamples)
    except (UserError, OSError) as error:
        print(f"standings: {error}", file=sys.stderr)
        return 2
    table = {
        "student": recipe.model.name,
        "teacher": {"AP": teacher},
        "data": recipe.data.path,
        "split": split.name,
        "images": len(split),
    }
    print(markdown(table | {"seeds": [run.name for run in found[PLAIN]], "rows": told, "stopped": {}}), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
