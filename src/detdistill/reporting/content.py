"""The values that a report is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Interval = tuple[float, float]
Role = Literal["teacher", "plain", "distilled"]
ROLES: tuple[Role, ...] = ("teacher", "plain", "distilled")


@dataclass(frozen=True)
class Gain:
    """What distillation changed, in AP (0..100).

    value: mean over the seeds of distilled minus plain. by_seed: of each pair of runs with the same seed.
    over_seeds, over_images: 95 % intervals, or None if there is only one seed or no data.
    recovered: the share of the teacher's lead that the student gained, or None if there is no lead.
    unsure: why the gain says nothing (the plain student has not learned), or an empty text.
    """

    value: float
    by_seed: Mapping[int, float]
    over_seeds: Interval | None
    over_images: Interval | None
    recovered: float | None
    unsure: str = ""

    @property
    def intervals(self) -> dict[str, Interval]:
        """The intervals that are known, by what they range over."""
        both = {"seeds": self.over_seeds, "images": self.over_images}
        return {name: interval for name, interval in both.items() if interval is not None}

    @property
    def crossing(self) -> list[str]:
        """The names of the intervals that contain 0."""
        return [name for name, (low, high) in self.intervals.items() if low <= 0 <= high]

    @property
    def is_proven(self) -> bool:
        """True if there are several seeds, and no interval contains 0."""
        return not self.unsure and self.over_seeds is not None and not self.crossing


@dataclass(frozen=True)
class Confusion:
    """Counts of classes (rows: ground truth) against detections (columns), (K + 1, K + 1); the last is background."""

    classes: tuple[str, ...]
    counts: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Quality:
    """What the ground truth says about the boxes of a model, averaged over its runs.

    interval: of AP over the images, 95 %. lost: AP50 (0..100) lost to each kind of error. counts: errors of each kind
    with a score of at least `min_score`. precision: for each IoU threshold the precision (0..1) at the recalls 0, 0.01,
    ..., 1.
    """

    interval: Interval | None
    lost: Mapping[str, float]
    counts: Mapping[str, float]
    min_score: float
    confusion: Confusion
    precision: Mapping[float, Sequence[float]]


@dataclass(frozen=True)
class Export:
    """An exported file of a model: what runs it, and its latency in milliseconds and size in bytes, if known."""

    name: str
    runtime: str
    latency_ms: float | None
    bytes: int | None


@dataclass(frozen=True)
class Log:
    """The values of a training log, averaged over the seeds: for each name the steps and the values."""

    values: Mapping[str, tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True)
class Origin:
    """Where a run comes from: its folder, seed, recipe as YAML, the command, and the environment."""

    folder: str
    seed: int
    recipe: str
    command: str
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class Member:
    """One model of a story, with all its runs.

    label: such as `plain` or `pkd+crosskd`. model: HEAD:BACKBONE. metrics: those of metrics.json, averaged over the
    runs; None where a value could not be measured. deviation: of AP over the seeds. bytes: of the weights.
    quality: None if the data or the boxes can't be read.
    """

    label: str
    role: Role
    model: str
    metrics: Mapping[str, Any]
    seeds: tuple[int, ...] = ()
    deviation: float | None = None
    gain: Gain | None = None
    quality: Quality | None = None
    bytes: int | None = None
    exports: tuple[Export, ...] = ()
    log: Log = Log({})
    origins: tuple[Origin, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A picture for the page: its title, the description for people who don't see it, and a data URI."""

    title: str
    description: str
    uri: str


@dataclass(frozen=True)
class Example:
    """An image with the boxes of several models. values: AP of this image alone, by model."""

    name: str
    values: Mapping[str, float]
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Story:
    """The models of one student on one data set.

    members: teachers, then plain, then distilled. images: of the split. training_images: None if not known.
    helped, hurt: examples, the most extreme first. Without a baseline, `hurt` has the images with the lowest AP.
    notes: what a reader must know before the numbers. absent: for a section that is missing or incomplete, the reason.
    resamples: of the images, behind the intervals over images. palette: the color of each class in the pictures, as CSS
    writes it.
    """

    student: str
    data: str
    members: Sequence[Member]
    split: str = "evaluation"
    images: int | None = None
    training_images: int | None = None
    helped: Sequence[Example] = ()
    hurt: Sequence[Example] = ()
    notes: Sequence[str] = ()
    absent: Mapping[str, str] = field(default_factory=dict)
    resamples: int | None = None
    palette: Mapping[str, str] = field(default_factory=dict)

    def of(self, role: Role) -> list[Member]:
        """The members with this role."""
        return [member for member in self.members if member.role == role]

    @property
    def plain(self) -> Member | None:
        """The plain student, or None."""
        return next(iter(self.of("plain")), None)

    @property
    def best(self) -> Member | None:
        """The distilled student with the highest AP among those whose gain is proven, or else among all; or None."""
        return best_of(self.members)


def best_of(members: Sequence[Member]) -> Member | None:
    """The best distilled student; see `Story.best`."""

    def rank(member: Member) -> tuple[bool, float]:
        is_better = member.gain is not None and member.gain.is_proven and member.gain.value > 0
        return is_better, member.metrics.get("AP") or 0.0

    return max((member for member in members if member.role == "distilled"), key=rank, default=None)
