"""The runs of a comparison: one per label and seed, each an ordinary run folder."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from detdistill.distributed import barrier
from detdistill.engine.progress import clock
from detdistill.engine.watch import NotFiniteError
from detdistill.recipe import Recipe
from detdistill.run.folder import RunFolder
from detdistill.run.tables import Say, printer
from detdistill.run.training import distill, train

FEW_STEPS = 200  # runs with fewer steps end before most students have learned to find objects


@dataclass(frozen=True)
class Entry:
    """One line of the table. label: `none`, or methods joined by `+`. recipe: that of its runs, except for the seed."""

    label: str
    recipe: Recipe

    @property
    def methods(self) -> frozenset[str]:
        """The names in the label, in no order."""
        return frozenset(self.label.split("+"))


def train_all(
    entries: Sequence[Entry], seeds: Sequence[int], folder: Path, *, resume: bool, console: Console | None
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """The run folders of each label, one per seed; and for each label that met a NaN or infinity, the reason it has
    none.
    """
    say = printer(console)
    labels = [entry.label for entry in entries]
    spent: dict[str, list[float]] = {}
    runs: dict[str, list[Path]] = {entry.label: [] for entry in entries}
    stopped: dict[str, str] = {}
    for seed in seeds:
        for number, entry in enumerate(entries, 1):
            if entry.label in stopped:
                continue
            later = len(seeds) - 1 - seeds.index(seed)
            waiting = [*labels[number - 1 :], *labels * later]
            left = seconds_left([label for label in waiting if label not in stopped], spent)
            say(f"\nseed {seed}, {entry.label} ({number} of {len(entries)}){left}")
            try:
                runs[entry.label].append(_train_one(entry, seed, folder, resume=resume, console=console))
                spent.setdefault(entry.label, []).append(RunFolder(runs[entry.label][-1]).metrics()["train_seconds"])
            except NotFiniteError as error:  # a finding about this method; the other methods continue
                stopped[entry.label] = f"stopped with seed {seed}: {error}"
                say(stopped[entry.label])
            barrier()  # all processes read what the main process wrote
    return {label: folders for label, folders in runs.items() if label not in stopped}, stopped


def seconds_left(waiting: Sequence[str], spent: Mapping[str, Sequence[float]]) -> str:
    """The training time of the runs that are not finished, in words, from the times of finished runs.

    waiting: the label of each run to come. spent: seconds of finished runs by label. Empty before the first is
    finished.
    """
    known = {label: statistics.mean(seconds) for label, seconds in spent.items()}
    if not known:
        return ""
    usual = statistics.mean(known.values())
    return f", {clock(sum(known.get(label, usual) for label in waiting))} of training left in all"


def warn_if_short(recipe: Recipe, images: int, say: Say) -> None:
    """Print a warning if the runs have too few steps for a comparison. images: of the training split."""
    steps = recipe.train.epochs * max(images // recipe.train.images_per_step, 1)
    steps = min(steps, recipe.train.max_steps or steps)
    if steps < FEW_STEPS:
        say(
            f"warning: each run has {steps} steps, which is too short to compare methods; give at least {FEW_STEPS}, "
            "with more --epochs or a smaller --batch-size"
        )


def _train_one(entry: Entry, seed: int, folder: Path, *, resume: bool, console: Console | None) -> Path:
    """Train one entry with one seed, and return its folder. The teacher was already checked for all entries."""
    run = folder / entry.label / f"seed-{seed}"
    recipe = entry.recipe.model_copy(
        update={
            "train": entry.recipe.train.model_copy(update={"seed": seed}),
            "teacher": entry.recipe.teacher.model_copy(update={"sample": 0}),
        }
    )
    started = resume and ((run / "checkpoint").exists() or RunFolder(run).finished)
    restart = not started and (run / "recipe.yaml").exists()  # interrupted before its first checkpoint
    verb = distill if recipe.methods else train
    verb(recipe, run, resume=started, overwrite=restart, page=False, console=console)
    return run
