"""The smallest things that look like a Distillation, a Detector, a method and a loader to the engine."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from detdistill.engine.watch import Sight
from detdistill.methods import Method
from detdistill.recipe import TrainConfig
from detdistill.types import Batch, DetectorOutput, Need, Pyramid, Targets, TrainState


class Student(nn.Module):
    """A convolution, a norm, dropout and a linear layer; the first two are the backbone."""

    def __init__(self, norm: bool = True, dropout: float = 0.5) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4) if norm else nn.Identity())
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4, 2)

    def backbone_parameters(self) -> list[nn.Parameter]:
        return list(self.backbone.parameters())

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.backbone(images).relu()).mean((2, 3)))


class Teacher(nn.Module):
    """A student's like that is asked, and remembers how."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Student()
        self.seen: list[tuple[bool, bool, Need]] = []

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> Any:
        self.seen.append((self.training, torch.is_grad_enabled(), need))
        return self.model(batch.images / 255)


class Distillation(nn.Module):
    """Two task terms, and one of a method with a connector of its own."""

    def __init__(self, student: Student, methods: bool = True) -> None:
        super().__init__()
        self.student = student
        self.methods = nn.ModuleList([nn.Linear(2, 2)] if methods else [])
        self.need = Need(pyramids=frozenset({"neck"}))
        self.ratios: dict[str, float] = {}
        self.gradients: dict[str, float] = {}

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


class Host(nn.Module):
    """A real detector's outputs at the smallest cost: a neck of two levels, a head with an in-place ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, padding=1)
        self.necks = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 2, stride=2)])
        self.head = nn.Conv2d(4, 2, 1)
        self.seen: list[Need] = []

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        self.seen.append(need)
        body = self.backbone(batch.images / 255).relu_()
        levels = tuple(neck(body) for neck in self.necks)
        losses = {}
        if targets is not None:
            said = sum(self.head(level).relu_().mean((2, 3)) for level in levels)
            goal = torch.stack([boxes.sum(0)[:2] for boxes in targets.boxes])
            losses = {"box": (said - goal).square().mean(), "class": said.square().mean()}
        return DetectorOutput({"neck": Pyramid(levels, (1, 2), batch.sizes)}, losses=losses)


class Match(Method):
    """Squares of the difference of two necks, `weight` times, in two terms."""

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
        pairs = zip(student_output.pyramids["neck"].levels, teacher_output.pyramids["neck"].levels, strict=True)
        fine, coarse = ((one - two.detach()).square().mean() for one, two in pairs)
        return {"fine": self.weight * fine, "coarse": self.weight * coarse}


class Blind(Match):
    """Its terms don't reach the neck."""

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        return {part: term.detach() for part, term in super().forward(student_output, teacher_output, targets).items()}


def host(seed: int = 0) -> Host:
    """A host with weights from `seed`."""
    torch.manual_seed(seed)
    return Host()


class Loader:
    """Images drawn from the seed, the epoch and the batch's number. `spoil` draws from torch's own generator too, as a bad loader does."""

    def __init__(
        self, batches: int = 5, batch_size: int = 4, seed: int = 0, spoil: bool = False, share: slice = slice(None)
    ) -> None:
        self.steps, self.batch_size, self.seed, self.spoil, self.share = batches, batch_size, seed, spoil, share

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Batch, Targets]]:
        if self.spoil:
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


def distillation(methods: bool = True, seed: int = 0, **student: Any) -> Distillation:
    """A distillation with weights from `seed`."""
    torch.manual_seed(seed)
    return Distillation(Student(**student), methods)


def teacher() -> Teacher:
    """A teacher, always the same."""
    torch.manual_seed(99)
    return Teacher()


def config(**changes: Any) -> TrainConfig:
    """Three epochs on the CPU, with everything on."""
    return TrainConfig(
        **{"epochs": 3, "device": "cpu", "lr": 0.01, "warmup_steps": 4, "ema": 0.9, "log_every": 3, **changes}
    )


class Event:
    """A copy that is under way, as on CUDA."""

    def __init__(self) -> None:
        self.awaited = False

    def synchronize(self) -> None:
        self.awaited = True


def send_later(step: int, images: tuple[str, ...], values: dict[str, Tensor]) -> Sight:
    """`watch._send` as it is on CUDA: the values are there after the event only."""
    return Sight(step, images, tuple(values), torch.stack([value.detach() for value in values.values()]), Event())  # type: ignore[arg-type]
