"""The sections about the runs: curves of the training, speed and size, recipes, environment and commands."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from detdistill.reporting.blocks import Block, Cell, Chart, Charts, Code, Fold, Table, Text
from detdistill.reporting.charts import Line, line_chart, swatch
from detdistill.reporting.content import Member, Story
from detdistill.reporting.quality_blocks import colors
from detdistill.reporting.words import number

NOT_TERMS = frozenset({"images_per_second", "data_seconds", "step", "epoch", "lr", "grad_norm", "total"})
PREFIXES = ("ratio_", "gradient_", "share_", "balance_")
MIB = 2**20


def curves(story: Story) -> list[Block]:
    """Every loss term, and the gradients, over the steps."""
    students = [each for each in story.members if each.role != "teacher" and each.log.values]
    if not students:
        return [Text("The runs have no log.jsonl, so there are no curves.", "unsure", "Not available")]
    palette = colors(story)
    names = list(dict.fromkeys(name for each in students for name in each.log.values))
    terms = [name for name in names if name not in NOT_TERMS and not name.startswith(PREFIXES)]
    order = sorted(terms, key=lambda name: (not name.startswith("task_"), name))

    def chart(name: str, title: str) -> Chart:
        owners = [each for each in students if name in each.log.values]
        lines = [Line(each.label, *each.log.values[name], palette[each.label]) for each in owners]
        return Chart(title, line_chart(title, "step", lines), [(line.name, swatch(line.color)) for line in lines])

    blocks: list[Block] = [
        Text("Each loss term with its weight, mean over the seeds, at the logged steps. The lines are not smoothed."),
        Charts([chart(name, name) for name in [*order, *(["total"] if "total" in names else [])]]),
    ]
    blocks += _shares(students)
    ratios = [name for name in names if name.startswith("ratio_")]
    if ratios:
        blocks.append(Text("The gradient of a method at the student's neck, as a multiple of the task's gradient."))
        blocks.append(Charts([chart(name, name.removeprefix("ratio_") + " / task") for name in ratios]))
    if balances := [name for name in names if name.startswith("balance_")]:
        blocks.append(Text("The factor by which a balanced method is multiplied."))
        blocks.append(Charts([chart(name, name.removeprefix("balance_")) for name in balances]))
    blocks.append(Text("AP is measured once, at the end of the training, so it has no curve."))
    return blocks


def _shares(students: Sequence[Member]) -> list[Block]:
    """The share of each term in the gradients, one chart per student that logged it."""
    every = {name for each in students for name in each.log.values if name.startswith("share_")}
    order = sorted(
        every, key=lambda name: (not name.startswith("share_task_"), name)
    )  # a term has one color everywhere
    charts = []
    for each in students:
        names = [name for name in order if name in each.log.values]
        lines = [Line(name.removeprefix("share_"), *each.log.values[name], order.index(name)) for name in names]
        if lines:
            title = f"Gradient shares, {each.label}"
            legend = [(line.name, swatch(line.color)) for line in lines]
            charts.append(Chart(title, line_chart(title, "step", lines, (0.0, 1.0)), legend))
    if not charts:
        return [Text("Gradient shares were not logged. Train with --train.log-gradients to see them here.")]
    return [Text("The share of each term in the sum of the gradient norms at the student's neck."), Charts(charts)]


def speed(story: Story) -> list[Block]:
    """Latency, operations, parameters and size of each model."""
    rows, exported = [], []
    for each in story.members:
        params, operations = each.metrics.get("params"), each.metrics.get("flops")
        seconds, memory = each.metrics.get("train_seconds"), each.metrics.get("peak_memory_bytes")
        rows.append(
            [
                Cell(each.label, each.label),
                _scaled(each.metrics.get("latency_ms"), 1, 1),
                _scaled(params, 1e6, 2),
                _scaled(operations, 1e9, 2),
                _scaled(each.bytes, MIB, 1),
                _scaled(seconds, 60, 1),
                _scaled(memory, MIB, 0),
            ]
        )
        for export in each.exports:
            names = [Cell(each.label, each.label), Cell(export.name, export.name), Cell(export.runtime, export.runtime)]
            exported.append([*names, _scaled(export.latency_ms, 1, 1), _scaled(export.bytes, MIB, 1)])
    columns = ["model", "PyTorch, ms per image", "million parameters", "GFLOPs", "weights, MiB", "training, minutes"]
    columns.append("peak memory of the training, MiB")
    blocks: list[Block] = [Table("Speed and size, means over the runs", columns, rows, frozenset(range(1, 7)))]
    if exported:
        columns = ["model", "file", "runtime", "ms per image", "size, MiB"]
        blocks.append(Table("Exported files", columns, exported, frozenset({3, 4})))
    note = "The latency is that of one image on the machine that measured the run. Compare only values of one machine."
    return [*blocks, Text(note)]


def _scaled(value: float | None, unit: float, digits: int) -> Cell:
    scaled = None if value is None else value / unit
    return Cell(number(scaled, digits), scaled)


def origin(story: Story) -> list[Block]:
    """Recipes, environment and commands."""
    every = [(each, origin) for each in story.members for origin in each.origins]
    if not every:
        return [Text("The runs have no recipe.")]
    commands = list(dict.fromkeys(spoken(origin.environment.get("command")) for _, origin in every))
    blocks: list[Block] = [
        Code("As it was run", "\n".join(command for command in commands if command) or "not known"),
        Code("To repeat a run from its recipe", "\n".join(origin.command for _, origin in every)),
        _environments([(f"{each.label}, seed {origin.seed}", origin.environment) for each, origin in every]),
    ]
    for each in story.members:
        for origin in each.origins[:1]:
            seeds = f", seed {origin.seed}" if len(each.origins) > 1 else ""
            blocks.append(Fold(f"Recipe of {each.label}{seeds}", [Code(origin.folder, origin.recipe)]))
    return blocks


def spoken(command: Any) -> str:
    """The command as a user types it, without the path of the program."""
    program, _, rest = str(command or "").partition(" ")
    return f"detdistill {rest}".strip() if program.endswith(("detdistill", "__main__.py")) else str(command or "")


def _environments(environments: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """What is the same for all runs in one column; where runs differ, their values."""
    flat = [(label, _flat(environment)) for label, environment in environments]
    names = list(dict.fromkeys(name for _, values in flat for name in values if name not in ("command", "started")))
    rows = []
    for name in names:
        values: dict[str, list[str]] = {}
        for label, environment in flat:
            values.setdefault(environment.get(name, "-"), []).append(label)
        text = (
            next(iter(values))
            if len(values) == 1
            else "; ".join(f"{value} ({', '.join(labels)})" for value, labels in values.items())
        )
        rows.append([Cell(name, name), Cell(text, text)])
    return Table("Environment", ["", "value"], rows, sortable=False)


def _flat(environment: Mapping[str, Any]) -> dict[str, str]:
    """The environment as texts, with the versions by name."""
    versions = environment.get("versions")
    plain = {name: value for name, value in environment.items() if name != "versions"}
    plain |= versions if isinstance(versions, Mapping) else {}
    return {name: _text(value) for name, value in plain.items()}


def _text(value: Any) -> str:
    if value is None or value == []:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)
