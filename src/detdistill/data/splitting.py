"""Splits of data without splits: by image name, so that they are the same on every machine, and stratified by class."""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detdistill.data.locate import name_parts
from detdistill.data.records import Record
from detdistill.data.roles import role, with_role
from detdistill.errors import UserError
from detdistill.recipe import DataConfig

VAL, TEST = 0.1, 0.2  # shares of data without splits if the recipe sets none
NONE = -1  # stands for a class in images without objects
Splits = Mapping[str, Sequence[Record]]


@dataclass(frozen=True)
class Division:
    """splits: all splits. made: the splits that were made here. note: a line for the user."""

    splits: Splits
    made: tuple[str, ...]
    note: str


def divide(splits: Splits, config: DataConfig) -> Division | None:
    """The splits after data.val_fraction and data.test_fraction, or None if nothing is to be divided.

    Data with one split whose name has no role, or no name, get train, val and test. Otherwise a fraction that the
    recipe sets is taken from the training split. Raises UserError if a fraction can't be used.
    """
    fractions = {"val": config.val_fraction, "test": config.test_fraction}
    whole = _whole(splits, config)
    if whole is not None:
        val, test = fractions.values()
        test = min(TEST, 1 - (val or 0)) if test is None else test
        fractions = {"val": min(VAL, 1 - test) if val is None else val, "test": test}
    shares = {name: fraction for name, fraction in fractions.items() if fraction}
    source = whole if whole is not None else _source(splits, shares, config)
    if source is None:
        return None
    if sum(shares.values()) > 1:
        raise UserError("data.val_fraction and data.test_fraction are more than 1 together; lower one of them")
    records = splits[source]
    parts = {name: part for name, part in hold_out(records, shares).items() if part}
    name = "train" if whole is not None else source
    made = {name if part == "train" else part: chosen for part, chosen in parts.items()}
    counts = ", ".join(f"{split} {len(chosen)}" for split, chosen in made.items())
    reason = "the data set has no splits" if whole is not None else f"{' and '.join(shares)} taken from {source}"
    note = (
        f"{reason}: {counts} of {len(records)} images, chosen by their names, with equal shares of each class "
        "(--data.val-fraction, --data.test-fraction)"
    )
    others = {split: part for split, part in splits.items() if split != source}
    return Division(made | others, tuple(made), note)


def hold_out(records: Sequence[Record], fractions: Mapping[str, float]) -> dict[str, tuple[Record, ...]]:
    """The records in `train` and in one part for each fraction, in their order. It depends only on names and classes.

    The classes are dealt out one after the other, the class in the fewest images first. Of its images that are left,
    each part gets as many as it lacks to have its share of this class (as in the iterative stratification of Sechidis
    et al., 2011). Which ones is decided by a hash of their names, so that a few new images move only a few others.
    """
    shares = {"train": 1 - sum(fractions.values()), **fractions}
    classes = [tuple(sorted(set(record.class_indices.tolist()))) or (NONE,) for record in records]
    images: dict[int, list[int]] = {}
    for index in sorted(range(len(records)), key=lambda index: _key(records[index])):
        for label in classes[index]:
            images.setdefault(label, []).append(index)
    lacks = {label: {part: share * len(indices) for part, share in shares.items()} for label, indices in images.items()}
    chosen: dict[int, str] = {}
    for label in sorted(images, key=lambda label: (label == NONE, len(images[label]), label)):
        left = [index for index in images[label] if index not in chosen]
        seats = _seats(lacks[label], len(left), shares)
        for part, indices in _dealt(left, seats).items():
            for index in indices:
                chosen[index] = part
                for other in classes[index]:
                    lacks[other][part] -= 1
    return {part: tuple(record for index, record in enumerate(records) if chosen[index] == part) for part in shares}


def _seats(lacks: Mapping[str, float], count: int, shares: Mapping[str, float]) -> dict[str, int]:
    """`count` images divided in proportion to what the parts lack, by largest remainders; on a tie to a small part."""
    wanted = {part: max(lack, 0.0) for part, lack in lacks.items()}
    total = sum(wanted.values()) or 1.0
    exact = {part: round(lack / total * count, 6) for part, lack in wanted.items()}  # sums differ in their last digits
    seats = {part: int(value) for part, value in exact.items()}
    order = sorted(shares, key=lambda part: (seats[part] - exact[part], shares[part]))
    for part in order[: count - sum(seats.values())]:
        seats[part] += 1
    return seats


def _dealt(indices: Sequence[int], seats: Mapping[str, int]) -> dict[str, Sequence[int]]:
    """The images of each part: val from the beginning, test from the end. So each border moves alone."""
    first, last = seats.get("val", 0), len(indices) - seats.get("test", 0)
    return {"val": indices[:first], "train": indices[first:last], "test": indices[last:]}


def _key(record: Record) -> tuple[str, str, str]:
    """Sorts images in an order that is random, but always the same for the same names."""
    name = (name_parts(record.name) or [record.name])[-1]
    name = unicodedata.normalize("NFC", name)  # file systems write an accent in two ways
    return hashlib.sha256(name.encode(errors="replace")).hexdigest(), record.name, str(record.path)


def _whole(splits: Splits, config: DataConfig) -> str | None:
    """The name of the only split if it is all of the data: it has no role, and the recipe does not name it."""
    if len(splits) != 1:
        return None
    (name,) = splits
    has_role = any(word in name.casefold() for word in ("train", "val", "test"))  # such as trainval
    return None if has_role or (name and name in (config.train_split, config.eval_split)) else name


def _source(splits: Splits, shares: Mapping[str, float], config: DataConfig) -> str | None:
    """The split from which the shares are taken, or None if there are none. Raises UserError if they exist already."""
    for name in shares:
        existing = next((split for split in splits if role(split, exact=True) == name), None)
        if existing is not None:
            raise UserError(
                f"data.{name}_fraction is {shares[name]:g}, but the data set has a split {existing!r}; "
                f"leave out --data.{name}-fraction"
            )
    if not shares:
        return None
    wanted = config.train_split or "train"
    source = wanted if wanted in splits else with_role(splits, role(wanted, exact=True), exact=False)
    if source is None:
        raise UserError(
            f"data.{next(iter(shares))}_fraction: the data set has no split {wanted!r} to take images from; "
            f"choose one of {', '.join(splits)} with --data.train-split"
        )
    return source
