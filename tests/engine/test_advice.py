"""Warnings about settings that let a run end badly."""

import io

import pytest
from rich.console import Console

from detdistill.detectors.registry import DETECTORS, names
from detdistill.engine.advice import Once, about_rate, about_waiting, about_warmup
from detdistill.recipe import TrainConfig


def test_adamw_with_ten_times_the_published_rate_is_warned_of() -> None:
    warning = about_rate("detr", 1e-4, TrainConfig())
    assert warning is not None
    assert "0.001 is 10 times the one that detr was published with" in warning
    assert "--lr 0.0001" in warning
    assert about_rate("detr", 1e-4, TrainConfig(lr=4e-4)) is None
    assert about_rate("detr", 1e-4, TrainConfig(optimizer="sgd")) is None
    assert about_rate("gfl", None, TrainConfig(lr=1.0)) is None


def test_every_head_with_queries_has_a_published_rate_and_the_default_rate_is_many_times_as_large() -> None:
    rates = {name: DETECTORS[name].learning_rate for name in names("queries")}
    assert all(rate is not None and 1e-5 <= rate <= 1e-3 for rate in rates.values()), rates
    assert not [name for name in names("dense", "two-stage") if DETECTORS[name].learning_rate is not None]
    larger = {name for name, rate in rates.items() if about_rate(name, rate, TrainConfig())}
    assert larger == {*rates} - {"d_fine"}  # whose published rate is a quarter of the default


@pytest.mark.parametrize(("steps", "warned"), [(49, True), (50, True), (51, False)])
def test_a_warm_up_that_lasts_the_whole_run_is_warned_of(steps: int, warned: bool) -> None:
    warning = about_warmup(steps, TrainConfig(warmup_steps=50))
    assert (warning is not None) == warned
    assert about_warmup(1, TrainConfig(warmup_steps=0)) is None


def test_waiting_for_images_is_warned_of_with_what_this_machine_can_do() -> None:
    assert about_waiting(0.2, 0, 8) is None
    assert about_waiting(0.45, 0, 8) == (
        "warning: training waits for images 45% of the time, with no worker processes; try --workers 1, or store the "
        "images at about the size of training"
    )
    assert "with 1 worker process; try --workers 2" in str(about_waiting(0.3, 1, 8))
    assert "with 6 worker processes; try --workers 8" in str(about_waiting(0.3, 6, 8))
    assert "with 8 worker processes; store the images" in str(about_waiting(0.3, 8, 8))


def test_a_warning_is_printed_once() -> None:
    console = Console(file=io.StringIO())
    tell = Once(console)
    for subject, warning in (("a", None), ("a", "first"), ("a", "second"), ("b", "other")):
        tell(subject, warning)
    assert console.file.getvalue() == "first\nother\n"  # type: ignore[attr-defined]
