"""What the inspection of a student and its teacher prints."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from detdistill.detectors.statistics import PixelStatistics
from detdistill.errors import plural, some
from detdistill.inspection.estimate import Prediction
from detdistill.inspection.facts import ModelFacts
from detdistill.run.backbones import normalization
from detdistill.run.nearest import Served
from detdistill.run.tables import number, show_findings, table

if TYPE_CHECKING:
    from detdistill.run.inspecting_pair import PairInspection

NAMES = 3  # class names that are shown


def show_pair(found: "PairInspection", console: Console) -> None:
    """Print the models side by side, what each method costs, which do not apply, and what is wrong with the teacher."""
    console.print()
    _print_models(found, console)
    if found.costs is not None:
        console.print()
        _print_costs(found, console)
    refused = [entry for entry in found.served.values() if entry.method is None]
    if refused:
        console.print()
        _print_refused(refused, console)
    if found.teacher is not None:
        console.print()
        _print_teacher(found, console)


def _print_models(found: "PairInspection", console: Console) -> None:
    """One column per model, one row per fact. Rows that neither model has are left out."""
    height, width = found.setting["image_size"]
    facts = {
        name: (path, model)
        for name, path, model in zip(("student", "teacher"), found.names, (found.student, found.teacher), strict=True)
        if model is not None
    }
    rows = [["model", *(path for path, _ in facts.values())]]
    for label, cell in _rows(height, width).items():
        cells = [cell(model) for _, model in facts.values()]
        if any(cells):
            rows.append([label, *(text or "-" for text in cells)])
    table(console, ["", *facts], rows)


def _rows(height: int, width: int) -> dict[str, Callable[[ModelFacts], str]]:
    """The label of each row, and its cell for a model; empty if the model has no such part."""
    return {
        "parameters": lambda model: f"{model.parameters / 1e6:.2f} M",
        "that train": lambda model: f"{model.trained / 1e6:.2f} M",
        f"operations at {height}x{width}": lambda model: _with(model.operations, lambda n: f"{n / 1e9:.2f} G"),
        "levels": lambda model: str(len(model.strides)),
        "strides": lambda model: ",".join(map(str, model.strides)),
        "channels": lambda model: ", ".join(f"{name} {_widths(width)}" for name, width in model.channels.items()),
        "classes": lambda model: f"{len(model.classes)}: {some(model.classes, NAMES)}" if model.classes else "",
        "scores": lambda model: model.activation if model.classes else "",
        "normalization": _normalization,
        "towers": lambda model: _with(model.tower_depth, lambda n: f"{n} convolutions, {model.tower_channels} wide"),
        "edge bins": lambda model: _with(model.edge_bins, str),
        "stages": lambda model: str(model.stages) if model.stages > 1 else "",
        "queries": lambda model: _with(model.queries, str),
        "proposals": lambda model: _with(model.proposals, str),
        "predictions per image": lambda model: _with(model.predictions, str),
    }


def _with(value: int | None, text: Callable[[int], str]) -> str:
    return "" if value is None else text(value)


def _normalization(model: ModelFacts) -> str:
    if model.mean is None or model.std is None:
        return "not known"
    (red, green, blue), (red_std, green_std, blue_std) = model.mean, model.std
    return normalization(PixelStatistics((red, green, blue), (red_std, green_std, blue_std)))


def _print_costs(found: "PairInspection", console: Console) -> None:
    """The table of predictions, plain training first, and what they rest on."""
    assert found.costs is not None
    rows = [_cost_row("none (plain)", found.costs.plain)]
    rows += [_cost_row(name, prediction) for name, prediction in found.costs.methods.items()]
    table(console, ["method", "s per step", "x plain", "memory", "whole run"], rows)
    setting: Mapping[str, Any] = found.setting
    count, _, height, width = found.costs.measured["batch"]
    base = f"measured on this machine ({setting['device']}, {plural(setting['threads'], 'thread')}) with "
    base += f"{plural(count, 'image')} per step, padded to {height}x{width}"
    if setting["steps"] is None:
        lines = [f"{base}; give --data for the time of a whole run"]
    else:
        whole = (
            f"{setting['steps']} steps ({plural(setting['epochs'], 'epoch')} of {plural(setting['images'], 'image')})"
        )
        lines = [base, f"whole run: {whole} and the evaluation of {plural(setting['evaluated'], 'image')}"]
    lines.append(
        f"memory: {'peak of the process' if setting['device'] == 'cpu' else 'peak that is allocated on the GPU'}"
    )
    for line in lines:
        console.print(line, soft_wrap=not console.is_terminal)


def _cost_row(name: str, prediction: Prediction) -> list[str]:
    memory = "-" if prediction.memory is None else f"{prediction.memory / 2**30:.2f} GiB"
    digits = 2 if prediction.step >= 1 else 3
    return [name, f"{prediction.step:.{digits}f}", f"{prediction.times:.2f}", memory, duration(prediction.hours)]


def duration(hours: float | None) -> str:
    """The time in seconds, minutes or hours, with two or more digits; `-` if it is not known."""
    if hours is None:
        return "-"
    if hours < 0.025:
        return f"{3600 * hours:.0f} s"
    if hours < 1.5:
        return f"{60 * hours:.{1 if hours < 1 / 6 else 0}f} min"
    return f"{hours:.{1 if hours < 100 else 0}f} h"


def _print_refused(refused: list[Served], console: Console) -> None:
    """The methods that do not serve the pair, by reason, with what is nearest. In a file, each reason is one line."""
    wraps = console.is_terminal
    console.print(f"{plural(len(refused), 'method')} can't serve this pair:")
    alike: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for entry in refused:
        alike.setdefault((entry.reason, entry.nearest, entry.instead), []).append(entry.name)
    for (reason, nearest, instead), names in alike.items():
        more = [f"nearest: {nearest or 'no change was found with which it would serve'}"]
        if instead:
            more.append(f"instead: {some(instead, NAMES)}")
        line = f"{', '.join(names)}: {reason}"
        if not wraps:
            console.print(" | ".join([line, *more]))
            continue
        console.print(line, soft_wrap=False)
        for line in more:
            console.print(f"    {line}", soft_wrap=False)


def _print_teacher(found: "PairInspection", console: Console) -> None:
    """What the teacher detected, and what looks broken."""
    sample = found.sample
    if sample is not None:
        text = f"teacher: AP {number(sample.AP)}, AP50 {number(sample.AP50)} on {plural(sample.images, 'image')}"
        console.print(text)
    else:
        reason = " without --data" if found.setting["data"] is None else ""
        console.print(f"teacher: its AP is not measured{reason}", soft_wrap=not console.is_terminal)
    show_findings(console, found.findings)
    verdict = "nothing looks broken" if not found.findings else found.verdict
    console.print(f"teacher: {verdict}", soft_wrap=not console.is_terminal)


def _widths(width: int | tuple[int, ...]) -> str:
    """One width, or those of the levels."""
    return str(width) if isinstance(width, int) else "/".join(map(str, width))
