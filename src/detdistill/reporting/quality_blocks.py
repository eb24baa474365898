"""The sections about quality: the result, classes and sizes, precision, kinds of errors, confusion, pictures."""

from collections.abc import Callable, Mapping, Sequence

from detdistill.reporting.blocks import Block, Cell, Chart, Charts, Fold, Gallery, Legend, Points, Table, Text
from detdistill.reporting.charts import COLORS, Line, bar, line_chart, swatch, whisker
from detdistill.reporting.content import Confusion, Example, Gain, Interval, Member, Quality, Story
from detdistill.reporting.words import Verdict, about, amount, number, sentence, signed, verdict

SIZES = {
    "small": ("APs", "area below 32² pixels"),
    "medium": ("APm", "32² to 96²"),
    "large": ("APl", "96² and more"),
}
SHOWN = 30  # classes of a table that is not folded
LARGEST = 15  # classes of a confusion matrix; with more, the most frequent confusions are listed
LISTED = 20  # confusions in such a list
ERRORS = (
    ("missed", "an object without any detection that could be its own"),
    ("wrong class", "in the right place (IoU 0.5 or more), with another class"),
    ("badly placed", "the right class, IoU of 0.1 to 0.5"),
    ("wrong class and badly placed", "another class, IoU of 0.1 to 0.5"),
    ("duplicate", "an object that another detection has found already"),
    ("background", "a detection where no object is, IoU below 0.1"),
)


def colors(story: Story) -> dict[str, int]:
    """The color of each model: the same on the whole page. The teacher's is the last one."""
    students = [member.label for member in story.members if member.role != "teacher"]
    chosen = {label: index % (COLORS - 1) for index, label in enumerate(students)}
    return {**{member.label: COLORS - 1 for member in story.of("teacher")}, **chosen}


def result(story: Story) -> list[Block]:
    """What was done, whether it helped, and the table of the models."""
    found = verdict(story)
    blocks: list[Block] = [Text(sentence(story)), Text(found.text, found.tone, found.title)]
    if story.notes:
        blocks.append(Points(list(story.notes)))
    blocks += [
        Text(reason, "unsure", "Incomplete") for name, reason in story.absent.items() if name in ("data", "images")
    ]
    blocks.append(_models(story))
    others = [each for each in story.of("distilled") if each.gain is not None and each is not story.best]
    if others:
        verdicts: list[Verdict] = [about(each, each.gain) for each in others if each.gain is not None]
        blocks.append(Points([f"{each.title}. {each.text}" for each in verdicts]))
    return blocks


def _models(story: Story) -> Table:
    """AP of each model with its intervals, and the gain over plain training."""
    intervals = [each.quality.interval for each in story.members if each.quality and each.quality.interval]
    values = [each.metrics["AP"] or 0.0 for each in story.members]
    high = max([*values, *(end for _, end in intervals)], default=1.0) or 1.0
    gains = [bound for each in story.members if each.gain for ends in each.gain.intervals.values() for bound in ends]
    reach = max([abs(value) for value in gains], default=1.0) or 1.0
    palette = colors(story)
    rows = []
    for each in story.members:
        color, ap = palette[each.label], each.metrics["AP"]
        interval = each.quality.interval if each.quality else None
        row = [Cell(each.label, each.label, below=each.model)]
        row.append(Cell(number(ap), ap, None if ap is None else whisker(ap, interval, 0.0, high, color)))
        row.append(_range(interval, number))
        row += [_number(value) for value in (each.deviation, each.metrics.get("AP50"), each.metrics.get("AP75"))]
        rows.append(row + _gain_cells(each.gain, reach, color))
    columns = ["model", "AP", "AP over images", "sd over seeds", "AP50", "AP75", "gain"]
    columns += ["gain over seeds", "gain over images", "of the teacher's lead"]
    caption = "Quality on the evaluation split, means over the seeds; ranges and lines are 95 % intervals"
    if story.resamples is not None:
        caption += f", over images from {story.resamples} resamples"
    kept = [index for index in range(len(columns)) if index == 0 or any(row[index].key is not None for row in rows)]
    shown = [[row[index] for index in kept] for row in rows]
    return Table(caption, [columns[index] for index in kept], shown, frozenset(range(1, len(kept))))


def _gain_cells(gain: Gain | None, reach: float, color: int) -> list[Cell]:
    """The gain with its intervals. reach: the end of the scale on both sides of 0."""
    if gain is None:
        return [Cell("-")] * 4
    widest = max(gain.intervals.values(), key=lambda interval: interval[1] - interval[0], default=None)
    mark = whisker(gain.value, widest, -reach, reach, color)
    ranges = [_range(interval, signed) for interval in (gain.over_seeds, gain.over_images)]
    return [Cell(signed(gain.value), gain.value, mark), *ranges, _percent(gain.recovered)]


def _number(value: float | None) -> Cell:
    return Cell(number(value), value)


def _range(interval: Interval | None, spoken: Callable[[float], str]) -> Cell:
    if interval is None:
        return Cell("-")
    return Cell(f"{spoken(interval[0])} to {spoken(interval[1])}", interval[0])


def _percent(share: float | None) -> Cell:
    return Cell("-" if share is None else f"{number(100 * share, 0)} %", share)


def by_class(story: Story) -> list[Block]:
    """AP by class and by size of the objects."""
    members = [each for each in story.members if each.metrics.get("per_class")]
    names = list(dict.fromkeys(name for each in members for name in each.metrics["per_class"]))

    def row(name: str, values: Sequence[float | None], title: str = "") -> list[Cell]:
        pairs = list(zip(members, values, strict=True))
        cells = [Cell(number(value), value, bar(value or 0.0, longest, palette[each.label])) for each, value in pairs]
        by_label = {each.label: value for each, value in pairs}
        return [Cell(name, name, title=title), *cells, *([_difference(story, by_label)] if compared else [])]

    palette = colors(story)
    compared = story.plain is not None and story.best is not None
    columns = ["class", *(each.label for each in members)]
    if compared and story.best is not None:
        columns.append(f"{story.best.label} minus plain")
    numeric = frozenset(range(1, len(columns)))
    known = [each.metrics["per_class"].get(name) for each in members for name in names]
    known += [each.metrics.get(key) for each in members for key, _ in SIZES.values()]
    longest = max((value for value in known if value is not None), default=0.0)  # one scale for both tables
    classes = [row(name, [each.metrics["per_class"].get(name) for each in members]) for name in names]
    sizes = [row(name, [each.metrics.get(key) for each in members], title) for name, (key, title) in SIZES.items()]
    table = Table("AP by class", columns, classes, numeric)
    return [
        table if len(classes) <= SHOWN else Fold(f"AP of the {len(classes)} classes", [table]),
        Table("AP by size of the object, in pixels of the image file", ["size", *columns[1:]], sizes, numeric),
    ]


def _difference(story: Story, values: Mapping[str, float | None]) -> Cell:
    assert story.plain is not None and story.best is not None
    before, after = values.get(story.plain.label), values.get(story.best.label)
    change = None if before is None or after is None else after - before
    return Cell(signed(change), change)


def _judged(story: Story) -> list[tuple[Member, Quality]]:
    return [(each, each.quality) for each in story.members if each.quality is not None]


def precision(story: Story) -> list[Block]:
    """Precision over recall, one chart per IoU threshold."""
    judged, palette = _judged(story), colors(story)
    charts = []
    for threshold in judged[0][1].precision if judged else ():
        lines = []
        for each, quality in judged:
            values = quality.precision[threshold]
            recalls = [index / (len(values) - 1) for index in range(len(values))]
            lines.append(Line(each.label, recalls, values, palette[each.label]))
        title = f"Precision at IoU {threshold:.2f}"
        legend = [(line.name, swatch(line.color)) for line in lines]
        charts.append(Chart(title, line_chart(title, "recall", lines, (0.0, 1.0)), legend))
    note = "Mean over the classes and seeds. A curve further up and to the right is better."
    return [Text(note), Charts(charts)] if charts else _no_boxes(story)


def errors(story: Story) -> list[Block]:
    """TIDE's kinds of errors of each model."""
    judged, palette = _judged(story), colors(story)
    if not judged:
        return _no_boxes(story)
    largest = max(max(quality.lost.values()) for _, quality in judged)
    most = max(max(quality.counts.values()) for _, quality in judged)
    columns = ["kind of error", *(each.label for each, _ in judged)]
    lost, counts = [], []
    for kind, meaning in ERRORS:
        head = Cell(kind, kind, title=meaning)
        values = [(each.label, quality.lost[kind], quality.counts[kind]) for each, quality in judged]
        lost.append(
            [head, *(Cell(number(loss), loss, bar(loss, largest, palette[label])) for label, loss, _ in values)]
        )
        counts.append(
            [head, *(Cell(amount(count), count, bar(count, most, palette[label])) for label, _, count in values)]
        )
    numeric = frozenset(range(1, len(columns)))
    score = judged[0][1].min_score
    return [
        Points([f"{kind}: {meaning}." for kind, meaning in ERRORS]),
        Table("AP50 lost to each kind of error (lower is better; the values do not add up)", columns, lost, numeric),
        Table(
            f"Errors among the boxes with a score of {score:g} or more, mean over the seeds", columns, counts, numeric
        ),
    ]


def confusions(story: Story) -> list[Block]:
    """Which classes each model takes for which."""
    judged = _judged(story)
    if not judged:
        return _no_boxes(story)
    chosen = [story.plain, story.best, *story.of("teacher")]
    shown = {each.label for each in chosen if each is not None}
    score = judged[0][1].min_score
    text = (
        f"Rows: the class of the object. Columns: the class of the box at IoU 0.5, with a score of {score:g} or more."
    )
    blocks: list[Block] = [Text(text)]
    for each, quality in judged:
        if each.label in shown:
            is_open = each.role != "teacher"
            blocks.append(Fold(f"Confusion of {each.label}", [_matrix(each.label, quality.confusion)], is_open))
    return blocks


def _matrix(label: str, confusion: Confusion) -> Table:
    """The whole matrix of few classes, or the most frequent confusions of many."""
    names = [*confusion.classes, "background"]
    caption = f"Confusion of {label}: number of boxes, mean over the seeds"
    if len(confusion.classes) > LARGEST:
        pairs = [
            (count, names[row], names[column])
            for row, counts in enumerate(confusion.counts)
            for column, count in enumerate(counts)
            if row != column and count and row < len(names) - 1
        ]
        pairs.sort(key=lambda pair: -pair[0])
        rows = [[Cell(a, a), Cell(b, b), Cell(amount(count), count)] for count, a, b in pairs[:LISTED]]
        return Table(f"{caption}; the {LISTED} most frequent", ["object", "found as", "boxes"], rows, frozenset({2}))
    rows = []
    for name, counts in zip(names, confusion.counts, strict=True):
        total = sum(counts)
        is_last = len(rows) == len(confusion.classes)  # boxes without an object: shares of them mean little
        cells = [Cell(amount(count), count, heat=None if is_last or not total else count / total) for count in counts]
        rows.append([Cell("no object" if is_last else name, name), *cells])
    columns = ["object", *confusion.classes, "not found"]
    return Table(caption, columns, rows, frozenset(range(1, len(columns))))


def pictures(story: Story) -> list[Block]:
    """The images that distillation helped and hurt most."""
    blocks: list[Block] = []
    if "pictures" in story.absent:
        blocks.append(Text(story.absent["pictures"], "unsure", "Images are missing"))
    if not (story.helped or story.hurt):
        return blocks or (_no_boxes(story) if not _judged(story) else [Text("No image changed.")])
    score = next((quality.min_score for _, quality in _judged(story)), 0.0)
    text = f"Boxes with a score of {score:g} or more. AP is that of the image alone, over all boxes."
    compared = story.plain is not None and story.best is not None
    if compared:
        text += " The change has the same sign with every seed."
    blocks.append(Text(text))
    if 0 < len(story.palette) <= SHOWN:
        blocks.append(Legend(story.palette))
    titles = ("Distillation helped most", "Distillation hurt most") if compared else ("", "Lowest AP")
    for title, examples in zip(titles, (story.helped, story.hurt), strict=True):
        if examples:
            blocks.append(Gallery(title, examples, [_caption(each) for each in examples]))
        elif title:
            blocks.append(Text(f"{title}: no image changed this way with every seed."))
    return blocks


def _caption(example: Example) -> str:
    values = [f"{label} AP {value:.0f}" for label, value in example.values.items()]
    return f"{example.name}: {', '.join(values)}"


def _no_boxes(story: Story) -> list[Block]:
    """Why a section that needs boxes and ground truth is empty."""
    reason = story.absent.get("data", "The runs have no predictions.json.")
    return [Text(f"Not available. {reason}", "unsure", "Not available")]
