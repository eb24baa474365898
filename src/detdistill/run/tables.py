"""What a run prints: lines and tables, rich on a terminal, aligned plain text in a file or a pipe."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console

from detdistill.distributed import is_main
from detdistill.inspection.findings import Finding
from detdistill.printing import grouped, number, table

__all__ = ["Say", "grouped", "metrics", "number", "printer", "show_findings", "summary", "table"]

Say = Callable[[str], None]


def printer(console: Console | None) -> Say:
    """A function that prints a line, in the main process only; without a console it prints nothing."""
    if console is None or not is_main():
        return lambda line: None
    return console.print


def metrics(console: Console, values: Mapping[str, Any]) -> None:
    """Print COCO metrics, AP per class, and the cost of the detector."""
    names = [name for name in values if name.startswith("A")]
    table(console, names, [[number(values[name]) for name in names]])
    table(console, ["class", "AP"], [[name, number(value)] for name, value in values["per_class"].items()])
    if "params" in values:
        parameters, operations = values["params"] / 1e6, values["flops"] / 1e9
        latency = values["latency_ms"]
        console.print(f"{parameters:.2f} M parameters, {operations:.2f} GFLOPs, {latency:.1f} ms per image")


def summary(values: Mapping[str, Any]) -> str:
    """COCO's two main metrics in a few words."""
    return f"AP {number(values['AP'])}, AP50 {number(values.get('AP50'))}"


def show_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Print each finding with its examples and its remedy. In a file or a pipe, each of these stays on one line."""
    wraps = console.is_terminal
    for finding in findings:
        console.print(f"{finding.level}: {finding.text}", style="bold", soft_wrap=not wraps)
        more = finding.count - len(finding.examples)
        lines = [*finding.examples, *([f"and {more} more"] if finding.examples and more else [])]
        for line in [*lines, *([f"remedy: {finding.remedy}"] if finding.remedy else [])]:
            console.print(f"    {line}", soft_wrap=not wraps)
