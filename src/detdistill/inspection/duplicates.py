"""Images that a data set has twice, and images that two of its splits share."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from detdistill.data import Record, Split
from detdistill.errors import NAMED, plural
from detdistill.inspection.findings import Finding, Level
from detdistill.inspection.pixels import SIDE, Glance, equal_files

BITS = 10  # difference hashes of nearly identical images differ in at most this many of 64 bits
CORRELATION = 0.97  # and their small pictures correlate at least so much
FLAT = 2.0  # of 255; a small picture with a smaller deviation has no structure, and its mean must agree this well
CANDIDATES = 20  # for each image, the pictures compared with it: those with the nearest hashes
COPY = re.compile(r"\.rf\.[0-9A-Za-z]+(?=\.|$)")  # Roboflow's mark in the names of the copies that it makes of an image


@dataclass(frozen=True, eq=False)
class Pictures:
    """The small pictures of n images, ready to be compared.

    bits: (n,) uint64 difference hashes.
    shapes: (n, SIDE * SIDE) float32 with mean 0 and length 1; 0 for a picture without structure.
    means: (n,) of the gray values; NaN for a picture with structure.
    """

    bits: np.ndarray
    shapes: np.ndarray
    means: np.ndarray

    @classmethod
    def of(cls, glances: Sequence[Glance]) -> "Pictures":
        values = np.stack([each.small for each in glances]).reshape(-1, SIDE * SIDE).astype(np.float32)
        means, deviations = values.mean(1), values.std(1)
        has_structure = deviations >= FLAT
        scale = np.where(has_structure, deviations * SIDE, np.inf)
        shapes = (values - means[:, None]) / scale[:, None]
        bits = np.array([each.bits for each in glances], dtype=np.uint64)
        return cls(bits, shapes, np.where(has_structure, np.nan, means))

    def similarity(self, index: int, others: "Pictures", chosen: np.ndarray) -> np.ndarray:
        """The correlation of picture `index` with the `chosen` other ones; 1 for two pictures of the same flat gray."""
        flat = np.abs(others.means[chosen] - self.means[index]) <= FLAT
        return np.where(flat, 1.0, others.shapes[chosen] @ self.shapes[index])


def twins(pictures: Pictures, others: Pictures | None = None) -> np.ndarray:
    """(n,) for each picture the index of the most similar other one, or -1 if none is nearly identical.

    others: None compares the pictures with each other; then each is compared with the earlier ones.
    """
    found = np.full(len(pictures.bits), -1)
    for index in range(len(found)):
        pool = (pictures.bits[:index]) if others is None else others.bits
        distances = np.bitwise_count(pool ^ pictures.bits[index])
        near = np.flatnonzero(distances <= BITS)
        if len(near) > CANDIDATES:
            near = near[np.argsort(distances[near], kind="stable")[:CANDIDATES]]
        if len(near):
            similar = pictures.similarity(index, others or pictures, near)
            if similar.max() >= CORRELATION:
                found[index] = near[similar.argmax()]
    return found


def duplicates(splits: Mapping[str, Split], glanced: Mapping[Record, Glance | str], training: str) -> list[Finding]:
    """The findings about images that occur twice in a split or in two splits.

    splits: those that should have no image in common, the training split first. glanced: the images that were looked
    at; files with equal bytes are found among all. training: the name of the training split.
    """
    identity = _identities(splits)
    unique = {name: _unique(split, identity) for name, split in splits.items()}
    found: list[Finding | None] = []
    for name, split in splits.items():
        found.append(_repeated(name, split, identity))
        found.append(_similar(name, list(unique[name].values()), glanced))
    for first, second in combinations(splits, 2):
        level: Level = "problem" if training in (first, second) else "warning"
        shared = [(unique[second][key], unique[first][key]) for key in unique[second] if key in unique[first]]
        rest = [record for key, record in unique[second].items() if key not in unique[first]]
        similar = _similar_across(list(unique[first].values()), rest, glanced)
        known = {record for pair in (*shared, *similar) for record in pair}
        copies, names = _same_names(list(unique[first].values()), rest, known)
        found += [
            _leak("leak", level, first, second, shared, "also in"),
            _leak("near-leak", level, first, second, similar, "nearly identical to an image of"),
            _leak("copies-in-two-splits", level, first, second, copies, "a copy of the same source as an image of"),
            _leak("same-name", "note", first, second, names, "named like another image of"),
        ]
    return [finding for finding in found if finding is not None]


def _identities(splits: Mapping[str, Split]) -> dict[Record, object]:
    """What tells whether two records have the same pixels: the first of the files with equal bytes."""
    paths = [record.path for split in splits.values() for record in split.records if record.path is not None]
    first = {path: group[0] for group in equal_files(paths) for path in group}
    return {
        record: first.get(record.path, record.path) if record.path is not None else record
        for split in splits.values()
        for record in split.records
    }


def _unique(split: Split, identity: Mapping[Record, object]) -> dict[object, Record]:
    """The records of a split with different pixels, by what identifies them."""
    unique: dict[object, Record] = {}
    for record in split.records:
        unique.setdefault(identity[record], record)
    return unique


def _repeated(name: str, split: Split, identity: Mapping[Record, object]) -> Finding | None:
    """The images of a split whose pixels an earlier image of it has."""
    first: dict[object, Record] = {}
    pairs = []
    for record in split.records:
        earlier = first.setdefault(identity[record], record)
        if earlier is not record:
            pairs.append((record, earlier))
    if not pairs:
        return None
    count = len(pairs)
    text = f"{plural(count, 'image')} of {name} {_has(count)} the same pixels as another image of {name}"
    return Finding("duplicates", "warning", count, text, _named(pairs), "remove the copies")


def _similar(name: str, records: Sequence[Record], glanced: Mapping[Record, Glance | str]) -> Finding | None:
    """The images of a split that are nearly identical to an earlier image of it."""
    seen, pictures = _pictures(records, glanced)
    if pictures is None:
        return None
    pairs = [(seen[index], seen[twin]) for index, twin in enumerate(twins(pictures)) if twin >= 0]
    if not pairs:
        return None
    count = len(pairs)
    text = f"{plural(count, 'image')} of {name} {_is(count)} nearly identical to another image of {name}"
    return Finding("near-duplicates", "note", count, text, _named(pairs), "they teach little; remove what is a copy")


def _similar_across(
    first: Sequence[Record], second: Sequence[Record], glanced: Mapping[Record, Glance | str]
) -> list[tuple[Record, Record]]:
    """The images of `second` that are nearly identical to one of `first`, with that image."""
    first_seen, first_pictures = _pictures(first, glanced)
    second_seen, second_pictures = _pictures(second, glanced)
    if first_pictures is None or second_pictures is None:
        return []
    matches = twins(second_pictures, first_pictures)
    return [(second_seen[index], first_seen[twin]) for index, twin in enumerate(matches) if twin >= 0]


def _pictures(
    records: Sequence[Record], glanced: Mapping[Record, Glance | str]
) -> tuple[list[Record], Pictures | None]:
    """The records that were looked at, and their pictures; None if there are none."""
    looks = {record: glanced.get(record) for record in records}
    seen = {record: look for record, look in looks.items() if isinstance(look, Glance)}
    return list(seen), Pictures.of(list(seen.values())) if seen else None


def _same_names(
    first: Sequence[Record], second: Sequence[Record], known: set[Record]
) -> tuple[list[tuple[Record, Record]], list[tuple[Record, Record]]]:
    """The images of `second` that share their name with one of `first`: copies that Roboflow made of the same source,
    and others. Images in `known`, and drawn images, are left out.
    """
    named = {_source_name(record): record for record in first if record.path is not None}
    copies: list[tuple[Record, Record]] = []
    names: list[tuple[Record, Record]] = []
    for record in second:
        other = named.get(_source_name(record)) if record.path is not None else None
        if other is None or record in known:
            continue
        is_copy = COPY.search(record.name) is not None
        (copies if is_copy else names).append((record, other))
    return copies, names


def _source_name(record: Record) -> str:
    """The file name in lower case, without its folder and Roboflow's mark."""
    return COPY.sub("", record.name.replace("\\", "/").rsplit("/", 1)[-1]).casefold()


def _leak(
    kind: str, level: Level, first: str, second: str, pairs: Sequence[tuple[Record, Record]], what: str
) -> Finding | None:
    if not pairs:
        return None
    remedy = f"remove them from {first} or from {second}, or the metrics on {second} are too good"
    if kind == "same-name":
        remedy = "no fault, unless the splits are put into one folder or results are joined by name"
    count = len(pairs)
    text = f"{plural(count, 'image')} of {second} {_is(count)} {what} {first}"
    return Finding(kind, level, count, text, _named(pairs), remedy)


def _named(pairs: Sequence[tuple[Record, Record]]) -> tuple[str, ...]:
    """The first pairs of images by name; a name only once if both have the same."""
    return tuple(
        record.name if record.name == other.name else f"{record.name} like {other.name}"
        for record, other in pairs[:NAMED]
    )


def _has(count: int) -> str:
    return "has" if count == 1 else "have"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
