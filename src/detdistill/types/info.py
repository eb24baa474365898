"""What is known of a detector before it sees an image, and what a method asks it for."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from detdistill.types.outputs import Activation, QueryPart


@dataclass(frozen=True)
class GridInfo:
    """The cells in which a dense head, or the RPN of a two-stage detector, predicts.

    anchors_per_cell: predictions per cell. cell_anchors: (width, height) in pixels of each anchor of a cell, per level;
    empty where predictions start from points. assigner: the rule that assigns targets to cells; two detectors with the
    same strides, anchors and assigner assign alike. quality: a centerness or IoU branch exists.
    """

    anchors_per_cell: int
    assigner: str
    cell_anchors: tuple[tuple[tuple[float, float], ...], ...] = ()
    quality: bool = False


@dataclass(frozen=True)
class TowerInfo:
    """The two towers of a dense head: number of convolutions and their width."""

    depth: int
    channels: int


@dataclass(frozen=True)
class EdgeInfo:
    """Distance distributions of box sides. bins: R.

    code: what else decides the distance that a bin stands for; empty where bin r stands for r strides. D-FINE has (up, reg_scale).
    """

    bins: int
    code: tuple[float, ...] = ()


@dataclass(frozen=True)
class ProposalInfo:
    """The RoI head of a two-stage detector.

    strides: of the levels that regions are pooled from. code: the weights of its box code. embedding_channels: width of what its
    box head hands to the predictor, or None.
    """

    strides: tuple[int, ...]
    code: tuple[float, ...]
    embedding_channels: int | None = None


@dataclass(frozen=True)
class QueryInfo:
    """The queries of a set predictor.

    width: of queries and embeddings. parts: the parts of a query set that its decoder reads. learned: its own queries are parameters;
    False where it chooses them from each image.
    """

    width: int
    parts: frozenset[QueryPart]
    learned: bool = False


@dataclass(frozen=True)
class DetectorInfo:
    """What is known of a detector before any image is seen.

    kind: the head's name in DETECTORS, for messages and presets. channels: width of each pyramid by name. The other fields
    describe parts, None where the detector does not have the part: the dense grid, and the parts it can continue from
    (`towers.resume`, `queries.redecode`, `proposals.classify`).
    """

    kind: str
    classes: tuple[str, ...]
    strides: tuple[int, ...]
    channels: Mapping[str, int]
    activation: Activation
    grid: GridInfo | None = None
    towers: TowerInfo | None = None
    edges: EdgeInfo | None = None
    queries: QueryInfo | None = None
    proposals: ProposalInfo | None = None

    @property
    def cell_anchors(self) -> tuple[tuple[tuple[float, float], ...], ...]:
        """Those of the grid; empty where there is no grid or predictions start from points."""
        return () if self.grid is None else self.grid.cell_anchors

    @property
    def has_quality(self) -> bool:
        """True where the dense head has a centerness or IoU branch."""
        return self.grid is not None and self.grid.quality


@dataclass(frozen=True)
class Need:
    """What is read of an output. Without targets, a detector stops as soon as the need is met.

    pyramids: names of pyramids. towers: depths of the tower states to keep. predictions, queries: the stages, the query set.
    proposals: the detector's own proposals and the stage they come from. classify: only `proposals.classify`, on boxes of another
    detector, for which no region has to be proposed.
    """

    pyramids: frozenset[str] = frozenset()
    towers: frozenset[int] = frozenset()
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
