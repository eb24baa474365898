"""The backbone nearest to one that can't serve: of the same family if one of it can, else of a similar name; and among
its relatives the one of the most similar size.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

import timm

from detdistill.detectors.timm.examine import UnfitError, count_parameters, examine

TRIES = 8  # models that are examined in each search; each takes a fraction of a second
TRIES_OF_A_KIND = 2  # of them, those whose names begin with the same word: mostly they fail for the same reason
LAST_RESORT = "resnet18"
RELATIVES = 8  # models whose parameters are counted


def alternative(name: str, strides: Sequence[int]) -> str:
    """`, such as 'x'` with the backbone nearest to `name` that has the finest of `strides`; '' if none was found."""
    found = nearest_backbone(name, strides)
    return "" if found is None else f", such as {found!r}"


def nearest_backbone(name: str, strides: Sequence[int]) -> str | None:
    """The timm model nearest to `name` that has a map of the finest of `strides`, or None if none was found.

    Models of the same family (the same module of timm) come first, the most similar name first, then models of other
    families, then ResNets. Among the models whose names begin like that of the first one that serves, it is the one
    with the most similar number of parameters.
    """
    family = _family(name)
    others = [other for other in timm.list_models() if other not in family]
    candidates = [*_varied(_by_similarity(name, family)), *_varied(_by_similarity(name, others)), LAST_RESORT]
    first = next((candidate for candidate in candidates if _serves(candidate, strides)), None)
    return None if first is None else _of_similar_size(name, first, strides)


def _of_similar_size(name: str, candidate: str, strides: Sequence[int]) -> str | None:
    """Of the candidate and its relatives that serve, the one with a number of parameters most similar to `name`."""
    relatives = [other for other in _family(candidate) if _kind(other) == _kind(candidate)]
    relatives = list(dict.fromkeys([candidate, *_by_similarity(name, relatives)[:RELATIVES]]))
    size = _parameters(name)
    relatives.sort(key=lambda other: abs(math.log(_parameters(other) / size)))
    return next((other for other in relatives if _serves(other, strides, quick=False)), None)


def _by_similarity(name: str, names: Iterable[str]) -> list[str]:
    """The names, without `name`, that have pretrained weights if it has; the most similar first."""
    matcher = SequenceMatcher(b=name)
    ratios = {}
    for other in names:
        if other != name and (_has_weights(other) or not _has_weights(name)) and not other.startswith("test_"):
            matcher.set_seq1(other)
            ratios[other] = matcher.ratio()
    return sorted(ratios, key=lambda other: -ratios[other])


def _varied(names: Iterable[str]) -> list[str]:
    """The first few names, with only a few that begin with the same word."""
    kinds = Counter[str]()
    chosen = []
    for name in names:
        kinds[_kind(name)] += 1
        if kinds[_kind(name)] <= TRIES_OF_A_KIND:
            chosen.append(name)
    return chosen[:TRIES]


def _serves(name: str, strides: Sequence[int], quick: bool = True) -> bool:
    try:
        return min(strides) in examine(name, quick).strides
    except UnfitError:
        return False


def _parameters(name: str) -> int:
    """The number of parameters; 1 if timm can't extract maps from the model."""
    try:
        return count_parameters(name)
    except UnfitError:
        return 1


def _family(name: str) -> list[str]:
    """All models of the same module of timm."""
    return timm.list_models(module=timm.models.model_entrypoint(name).__module__.rpartition(".")[2])


def _kind(name: str) -> str:
    return name.partition("_")[0]


def _has_weights(name: str) -> bool:
    config = timm.get_pretrained_cfg(name)
    return config is not None and config.has_weights
