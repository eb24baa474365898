"""What is known of a detector beforehand, and what is asked of it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from detdistill.types.outputs import Activation, QueryPart

Continuation = Literal["towers", "queries", "proposals"]


@dataclass(frozen=True)
class DetectorInfo:
    """What is known of a detector before any image is seen.

    kind: the head's name in DETECTORS. channels: width of each pyramid. cell_anchors: (width, height) in pixels of each anchor of a
    cell, per level; empty where predictions are points or queries. tower_depth, tower_channels: None without towers. edge_bins: R.
    edge_code: what decides how far a bin is where that isn't its number of strides (D-FINE: up and reg_scale).
    roi_strides: of the levels that RoIs are cut from; roi_code: the weights that the RoI head's box codes are multiplied by; empty without.
    embedding_channels: width of the RoI head's embeddings, None without. query_width: of the decoder's queries and embeddings, None without.
    query_parts: what the decoder reads of a query set. learned_queries: its own are parameters; False where it draws them from the image.
    """

    kind: str
    classes: tuple[str, ...]
    strides: tuple[int, ...]
    channels: Mapping[str, int]
    activation: Activation
    continuations: frozenset[Continuation] = frozenset()
    cell_anchors: tuple[tuple[tuple[float, float], ...], ...] = ()
    anchors_per_cell: int | None = None
    tower_depth: int | None = None
    tower_channels: int | None = None
    edge_bins: int | None = None
    edge_code: tuple[float, ...] = ()
    quality: bool = False
    roi_strides: tuple[int, ...] = ()
    roi_code: tuple[float, ...] = ()
    embedding_channels: int | None = None
    query_width: int | None = None
    query_parts: frozenset[QueryPart] = frozenset()
    learned_queries: bool = False


@dataclass(frozen=True)
class Need:
    """What is read of an output. A detector without targets stops as soon as it is met. classify: `proposals.classify` alone, on boxes of
    another detector, for which no region is proposed; proposals: that and this detector's own, and the stage they come from."""

    pyramids: frozenset[str] = frozenset()
    towers: frozenset[int] = frozenset()  # depths of the states to keep
    predictions: bool = False
    queries: bool = False
    proposals: bool = False
    classify: bool = False

    def __or__(self, other: "Need") -> "Need":
        return Need(**{item.name: getattr(self, item.name) | getattr(other, item.name) for item in fields(self)})

    @property
    def head(self) -> bool:
        """True where anything behind the neck is read."""
        return bool(self.towers) or self.predictions or self.queries or self.proposals or self.classify
