"""What is known of a detector before it sees an image, and what a method reads of its output."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from detdistill.errors import UserError
from detdistill.types.outputs import Activation, QueryPart


@dataclass(frozen=True)
class GridInfo:
    """The cells in which a dense head, or the RPN of a two-stage detector, predicts.

    anchors_per_cell: number of predictions per cell.
    assigner: name of the rule that assigns targets to cells. Two detectors with the same strides, anchors and assigner
        give the same assignment.
    cell_anchors: (width, height) in pixels of each anchor of a cell, per level. Empty if predictions start from points.
    quality: True if the head has a centerness or IoU branch.
    """

    anchors_per_cell: int
    assigner: str
    cell_anchors: tuple[tuple[tuple[float, float], ...], ...] = ()
    quality: bool = False


@dataclass(frozen=True)
class TowerInfo:
    """The classification tower and the regression tower of a dense head.

    depth: number of convolutions of each tower.
    channels: width of these convolutions.
    """

    depth: int
    channels: int


@dataclass(frozen=True)
class EdgeInfo:
    """The distance distributions of box sides.

    bins: R, the number of bins per side.
    code: other numbers that decide the distance of a bin; D-FINE has (up, reg_scale). Empty if bin r means r strides.
    """

    bins: int
    code: tuple[float, ...] = ()


@dataclass(frozen=True)
class ProposalInfo:
    """The RoI head of a two-stage detector.

    strides: of the levels that regions are pooled from.
    code: the weights that box codes are multiplied by.
    embedding_channels: width of the features that its box head passes to the predictor, or None.
    """

    strides: tuple[int, ...]
    code: tuple[float, ...]
    embedding_channels: int | None = None


@dataclass(frozen=True)
class QueryInfo:
    """The queries of a set predictor.

    width: D, the width of queries and embeddings.
    parts: the parts of a `QuerySet` that its decoder reads.
    learned: True if its own queries are parameters; False if it selects them from each image.
    """

    width: int
    parts: frozenset[QueryPart]
    learned: bool = False


@dataclass(frozen=True)
class DetectorInfo:
    """What is known of a detector before it sees an image.

    kind: name of the head in DETECTORS, for messages and presets.
    classes: class names, in the order of the logits.
    strides: of the pyramid levels, fine to coarse.
    channels: width of each pyramid, by the name of the pyramid: a number, or one number per level if the levels differ.
        "neck" is always present. `width` reads it.
    activation: the function that converts logits to scores.

    The other fields describe parts of the detector. They are None if the detector does not have the part.
    grid: the dense grid of its first stage.
    towers: the towers, which can continue from a state (`towers.resume`).
    edges: the distance distributions of box sides.
    queries: the queries, which can be decoded again (`queries.redecode`).
    proposals: the RoI head, which can classify other boxes (`proposals.classify`).
    """

    kind: str
    classes: tuple[str, ...]
    strides: tuple[int, ...]
    channels: Mapping[str, int | tuple[int, ...]]
    activation: Activation
    grid: GridInfo | None = None
    towers: TowerInfo | None = None
    edges: EdgeInfo | None = None
    queries: QueryInfo | None = None
    proposals: ProposalInfo | None = None

    def width(self, pyramid: str = "neck", stride: int | None = None) -> int:
        """The number of channels of a pyramid's level.

        stride: of the level; None: the width that all levels share. Raises UserError if they have different widths.
        """
        widths = self.channels[pyramid]
        if isinstance(widths, int):
            return widths
        if stride is not None:
            return widths[self.strides.index(stride)]
        if len(set(widths)) > 1:
            raise UserError(
                f"{self.kind}: the levels of its pyramid {pyramid!r} have different widths "
                f"({', '.join(map(str, widths))}), but this method reads all levels with one layer; use a model whose "
                "levels have the same width, or a method that treats each level by itself, such as pkd or mgd"
            )
        return widths[0]

    @property
    def cell_anchors(self) -> tuple[tuple[tuple[float, float], ...], ...]:
        """`grid.cell_anchors`. Empty if there is no grid or if predictions start from points."""
        return () if self.grid is None else self.grid.cell_anchors

    @property
    def has_quality(self) -> bool:
        """True if the dense head has a centerness or IoU branch."""
        return self.grid is not None and self.grid.quality


@dataclass(frozen=True)
class Need:
    """The parts of an output that are read. Without targets, a detector stops as soon as these parts are computed.

    pyramids: names of pyramids.
    towers: depths of the tower states to keep.
    predictions: the stages.
    queries: the query set and its functions.
    proposals: the detector's own proposals and the stage that they come from.
    classify: only the function `proposals.classify`, for boxes of another detector. The detector's own proposals are
        not computed.
    """

    pyramids: frozenset[str] = frozenset()
    towers: frozenset[int] = frozenset()
    predictions: bool = False
    queries: bool = False
    proposals: bool = False
    classify: bool = False

    def __or__(self, other: "Need") -> "Need":
        """The union of two needs."""
        return Need(**{item.name: getattr(self, item.name) | getattr(other, item.name) for item in fields(self)})

    @property
    def head(self) -> bool:
        """True if any part behind the neck is read."""
        return bool(self.towers) or self.predictions or self.queries or self.proposals or self.classify
