"""Small stand-ins for a Distillation, a Detector, a method and a loader, and readers of what a run writes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detdistill.engine.checkpoint import checkpoint_path
from detdistill.engine.watch import Reading
from detdistill.methods import Method
from detdistill.recipe import TrainConfig
from detdistill.types import Batch, DetectorOutput, Need, Pyramid, Targets, TrainState

TIMES = ("images_per_second", "data_seconds")  # columns of a log row that differ between equal runs


class FakeStudent(nn.Module):
    """A convolution, a norm, dropout and a linear layer. The convolution and the norm are the backbone."""

    def __init__(self, norm: bool = True, dropout: float = 0.5) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4) if norm else nn.Identity())
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4, 2)

    def backbone_parameters(self) -> list[nn.Parameter]:
        return list(self.backbone.parameters())

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.backbone(images).relu()).mean((2, 3)))


class FakeTeacher(nn.Module):
    """A FakeStudent that records its calls.

    calls: per call of `observe`, (training mode, gradients are enabled, need).
    """

    def __init__(self) -> None:
        super().__init__()
        self.model = FakeStudent()
        self.calls: list[tuple[bool, bool, Need]] = []

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> Any:
        self.calls.append((self.training, torch.is_grad_enabled(), need))
        return self.model(batch.images / 255)


class FakeDistillation(nn.Module):
    """Two task terms, and one term of a method with a connector."""

    def __init__(self, student: FakeStudent, has_method: bool = True) -> None:
        super().__init__()
        self.student = student
        self.methods = nn.ModuleList([nn.Linear(2, 2)] if has_method else [])
        self.need = Need(pyramids=frozenset({"neck"}))
        self.rehearsing = False
        self.balances: dict[str, Any] = {}
        self.ratios: dict[str, float] = {}
        self.gradients: dict[str, float] = {}

    def due(self, state: TrainState) -> list[str]:
        return []

    def need_at(self, state: TrainState) -> Need | None:
        return self.need if self.methods else None

    def factors(self) -> dict[str, float]:
        return {}

    def forward(
        self,
        batch: Batch,
        targets: Targets,
        teacher_output: Tensor | None = None,
        state: TrainState = TrainState(),
        measure: bool = False,
    ) -> dict[str, Tensor]:
        output = self.student(batch.images / 255)
        goal = torch.stack([boxes.sum(0)[:2] for boxes in targets.boxes])
        terms = {"task_box": (output - goal).square().mean(), "task_class": output.square().mean()}
        for method in self.methods:
            assert teacher_output is not None
            terms["match_neck"] = (method(output) - teacher_output).square().mean()
        return terms


class SmallDetector(nn.Module):
    """The outputs of a real detector at the lowest cost: a neck of two levels, and a head with an in-place ReLU.

    needs: the `need` of each call of `observe`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, padding=1)
        self.necks = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 2, stride=2)])
        self.head = nn.Conv2d(4, 2, 1)
        self.needs: list[Need] = []

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        self.needs.append(need)
        features = self.backbone(batch.images / 255).relu_()
        levels = tuple(neck(features) for neck in self.necks)
        losses = {}
        if targets is not None:
            output = sum(self.head(level).relu_().mean((2, 3)) for level in levels)
            goal = torch.stack([boxes.sum(0)[:2] for boxes in targets.boxes])
            losses = {"box": (output - goal).square().mean(), "class": output.square().mean()}
        return DetectorOutput({"neck": Pyramid(levels, (1, 2), batch.sizes)}, losses=losses)


class Match(Method):
    """Mean squared difference of the two necks, times `weight`: one term per level, `fine` and `coarse`.

    pyramid: name of the pyramid in `need`.
    """

    def __init__(self, weight: float = 1.0, name: str = "match", pyramid: str = "neck") -> None:
        super().__init__()
        self.weight = weight
        self.name = name  # type: ignore[misc]
        self.need = Need(pyramids=frozenset({pyramid}))
        self.student_need = Need(pyramids=frozenset({pyramid}))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        terms = {}
        for index, part in enumerate(("fine", "coarse")):
            student_level = student_output.pyramids["neck"].levels[index]
            teacher_level = teacher_output.pyramids["neck"].levels[index]
            terms[part] = self.weight * (student_level - teacher_level.detach()).square().mean()
        return terms


class DetachedMatch(Match):
    """Its terms give the neck no gradient."""

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        return {part: term.detach() for part, term in super().forward(student_output, teacher_output, targets).items()}


class FakeLoader:
    """Random images that depend on the seed, the epoch and the number of the batch only.

    batches: per epoch. draws_globally: True also draws from torch's global generator, as a bad loader does. share: the
    part of each batch that is returned.
    """

    def __init__(
        self,
        batches: int = 5,
        batch_size: int = 4,
        seed: int = 0,
        draws_globally: bool = False,
        share: slice = slice(None),
    ) -> None:
        self.steps = batches
        self.batch_size = batch_size
        self.seed = seed
        self.draws_globally = draws_globally
        self.share = share

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Batch, Targets]]:
        if self.draws_globally:
            torch.rand(3)
        for index in range(start, self.steps):
            yield self.batch(number, index)

    def batch(self, number: int, index: int) -> tuple[Batch, Targets]:
        generator = torch.Generator().manual_seed(self.seed * 10_000 + number * 100 + index)
        images = torch.randint(0, 256, (self.batch_size, 3, 8, 8), generator=generator, dtype=torch.uint8)[self.share]
        boxes = torch.rand(self.batch_size, 1, 4, generator=generator)[self.share]
        count = len(images)
        sizes = torch.full((count, 2), 8)
        names = tuple(f"{number}_{index}_{image}.jpg" for image in range(count))
        batch = Batch(images, sizes, sizes, torch.arange(count), names)
        return batch, Targets(tuple(boxes), tuple(torch.zeros(1, dtype=torch.long) for _ in range(count)))


class FakeEvent:
    """A CUDA event. is_awaited: True after `synchronize` was called."""

    def __init__(self) -> None:
        self.is_awaited = False

    def synchronize(self) -> None:
        self.is_awaited = True


def small_detector(seed: int = 0) -> SmallDetector:
    """A SmallDetector with weights from `seed`."""
    torch.manual_seed(seed)
    return SmallDetector()


def fake_distillation(has_method: bool = True, seed: int = 0, **student: Any) -> FakeDistillation:
    """A FakeDistillation with weights from `seed`. student: arguments of FakeStudent."""
    torch.manual_seed(seed)
    return FakeDistillation(FakeStudent(**student), has_method)


def fake_teacher() -> FakeTeacher:
    """A FakeTeacher with the same weights in every call."""
    torch.manual_seed(99)
    return FakeTeacher()


def train_config(**changes: Any) -> TrainConfig:
    """Three epochs on the CPU, with warm-up and moving average."""
    fields = {"epochs": 3, "device": "cpu", "lr": 0.01, "warmup_steps": 4, "ema": 0.9, "log_every": 3}
    return TrainConfig(**{**fields, **changes})


def send_later(step: int, images: tuple[str, ...], values: dict[str, Tensor]) -> Reading:
    """A replacement of `watch._send` that acts as on CUDA: the values may be read only after the event."""
    stacked = torch.stack([value.detach() for value in values.values()])
    return Reading(step, images, tuple(values), stacked, FakeEvent())  # type: ignore[arg-type]


def checkpoint_state(out: Path) -> dict[str, Any]:
    """The content of the checkpoint of `out`, without what differs between equal runs."""
    saved = torch.load(checkpoint_path(out), weights_only=True)
    return {name: value for name, value in saved.items() if name not in ("seconds", "fingerprint")}


def log_rows(out: Path) -> list[dict]:
    """The rows of log.jsonl, without the times."""
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def assert_identical(actual: Any, expected: Any) -> None:
    """Check that two trees of tensors are equal bit for bit."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
