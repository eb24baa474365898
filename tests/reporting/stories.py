"""Stories with values made up by hand, and names that would break a page that does not escape them."""

from dataclasses import replace
from typing import Any

from PIL import Image

from detdistill.reporting import (
    Confusion,
    Example,
    Export,
    Gain,
    Log,
    Member,
    Origin,
    Quality,
    Story,
    picture,
)

HOSTILE = "<script>alert(1)</script>\"'&{{ 7 * 7 }}"
KINDS = ("missed", "wrong class", "badly placed", "wrong class and badly placed", "duplicate", "background")


def gain(value: float, seeds: tuple[float, float] | None, images: tuple[float, float] | None = None) -> Gain:
    """A gain over two seeds, or over one if there is no interval over seeds."""
    by_seed = {0: value, 1: value} if seeds else {0: value}
    return Gain(value, by_seed, seeds, images or (value - 0.5, value + 0.5), recovered=0.25)


def member(label: str, role: Any, average: float, **over: Any) -> Member:
    """A model with this AP, and everything that a page can show."""
    metrics = {
        "AP": average,
        "AP50": average + 20,
        "AP75": average - 2,
        "APs": None,
        "APm": average,
        "APl": average + 5,
        "per_class": {HOSTILE: average - 5, "cat": average + 5, "never there": None},
        "params": 500_000,
        "flops": 2_000_000_000,
        "latency_ms": 9.5,
        "train_seconds": 90.0,
        "peak_memory_bytes": 2**30,
    }
    quality = Quality(
        interval=(average - 1, average + 1),
        lost=dict(zip(KINDS, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0), strict=True)),
        counts=dict.fromkeys(KINDS, 3.0),
        min_score=0.3,
        confusion=Confusion((HOSTILE, "cat"), [[5, 1, 2], [0, 7, 1], [3, 2, 0]]),
        precision={0.5: [1 - index / 100 for index in range(101)], 0.75: [0.5] * 101},
    )
    steps = [1, 10, 20]
    terms = {"task_box": (steps, [3.0, 2.0, 1.0]), "total": (steps, [4.0, 2.0, 1.5]), "lr": (steps, [0.1, 0.1, 0.1])}
    if role == "distilled":
        terms |= {f"{label}_features": (steps, [2.0, 1.0, 0.5]), f"ratio_{label}": (steps, [2.0, 2.0, 1.0])}
        terms |= {"share_task_box": (steps, [0.5, 0.6, 0.7]), f"share_{label}_features": (steps, [0.5, 0.4, 0.3])}
    origin = Origin(f"runs/{label}", 0, f"model: {HOSTILE}\n", f"detdistill train --recipe runs/{label}", environment())
    made = Member(label, role, "gfl:resnet18", metrics, (0, 1), 0.5, None, quality, 2**20, (), Log(terms), (origin,))
    return replace(made, **over)


def environment() -> dict[str, Any]:
    """What environment.json has."""
    return {"command": ".venv/bin/detdistill train", "commit": None, "gpus": [], "versions": {"torch": "2.14.1"}}


def example(name: str) -> Example:
    """An image with three sets of boxes."""
    image = Image.new("RGB", (64, 48), (90, 120, 40))
    pictures = [picture(title, f"{name}: {title}", image) for title in ("ground truth", "plain", "pkd")]
    return Example(name, {"plain": 10.0, "pkd": 30.0}, pictures)


def story(**over: Any) -> Story:
    """A teacher, a plain student and two distilled ones."""
    export = Export("student.onnx", "onnxruntime", 4.5, 2**21)
    members = [
        member("teacher", "teacher", 40.0),
        member("plain", "plain", 20.0),
        member("pkd", "distilled", 23.0, gain=gain(3.0, (1.0, 5.0)), exports=(export,)),
        member("crosskd", "distilled", 19.0, gain=gain(-1.0, (-3.0, 1.0))),
    ]
    made = Story(
        student="gfl:resnet18",
        data="photographs",
        split="test",
        images=50,
        training_images=200,
        members=members,
        helped=[example(f"{HOSTILE}.jpg")],
        hurt=[example("b.jpg")],
        notes=[f"A note about {HOSTILE}."],
        palette={HOSTILE: "rgb(242, 24, 24)", "cat": "rgb(24, 80, 242)"},
    )
    return replace(made, **over)
