"""The table of all methods, and a page and a picture of the data flow for each."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cache
from typing import get_type_hints

from detdistill.detectors.registry import DETECTORS
from detdistill.engine.schedule import Schedule
from detdistill.methods import METHODS, by_group
from detdistill.methods.method import option_meanings
from detdistill.methods.presets import published_values
from detdistill.run.pairing import serves

from .drawing import drawing
from .flow import Flow, detector_info, heads_served, record
from .measured import measurements
from .published import SOURCES
from .text import NOTE, choices, joined, paper_link, prose, table, value

OVERVIEW = f"""# Methods

{NOTE} Each method has a page with
its equation, its data flow, its options, published numbers and our own. [Choose a method](choose.md) helps to choose
one, the [guide](guide.md#methods-and-when-each-applies) explains when each method applies, and
[conformance](conformance.md) shows the pairs that were tried.
"""

MATRIX = """
## Detectors and methods

A cell says whether the method can distill between two detectors with this head, with its published options. `edges`:
yes if both are built with `--model.edges`. `part`: yes with `--methods.detrdistill.weight-assignment 0`, since these
detectors choose their queries from the image (so does a two-stage Deformable DETR).

For two detectors with different heads: the methods for neck features serve any pair with a level of equal stride
(`frs` also needs a teacher with dense scores or an RPN). For other methods, see what they need above: the methods for
RoI heads, for example, need two-stage detectors on both sides. If a method can't serve a pair, the command stops
before training and says why.
"""

PAIRS = """
## Pairs of different heads

The methods that serve a student and a teacher of different heads, both with their default strides and the published
options. `detr`, `conditional_detr` and `dab_detr` have one level, of stride 32.
"""

COMMON = (
    ("retinanet", "faster_rcnn"),
    ("gfl", "faster_rcnn"),
    ("gfl", "rt_detr"),
    ("gfl", "atss"),
    ("gfl", "fcos"),
    ("gfl", "retinanet"),
    ("fcos", "faster_rcnn"),
    ("faster_rcnn", "retinanet"),
    ("faster_rcnn", "mask_rcnn"),
    ("rt_detr", "gfl"),
    ("rt_detr", "d_fine"),
    ("deformable_detr", "rt_detr"),
    ("detr", "deformable_detr"),
)
"""Students and teachers of the table of pairs."""

FLOW = """## Data flow

![What {name} reads of both detectors, and its terms]({name}.svg)

The picture is drawn from a run of the method on two small detectors of the kind `{head}`, with the published options.
A filled box is a part that the method read. {teacher}
"""

DIRECTION = {
    True: "The whole teacher is computed.",
    False: "The teacher stops behind its last solid box: the dashed parts are not computed.",
}

NO_GAIN = "No published AP of an object detector on COCO could be verified, so none is quoted here."

UNMEASURED = """Not in the tables of [results](../results.md) yet. Compare it on your data:
`detdistill compare --methods none,{name}` with your student and teacher, see
[comparing methods](../comparing.md)."""


def methods() -> str:
    """The content of methods.md."""
    lines = [OVERVIEW]
    for group, members in by_group().items():
        lines += [f"## {group[:1].upper()}{group[1:]}", ""]
        columns = (
            "method",
            "the student copies",
            "student and teacher need",
            "learns",
            "published AP on COCO",
            "paper",
        )
        rows = [
            (
                f"[`{m.name}`](methods/{m.name}.md)",
                m.copies,
                m.requires,
                m.learns or "nothing",
                m.gain or "-",
                paper_link(m.paper),
            )
            for m in members
        ]
        lines += [*table(columns, rows), ""]
    lines += [MATRIX.strip(), ""]
    heads = list(DETECTORS)
    rows = [(f"`{name}`", *(_cell(name, head, heads_served()[name]) for head in heads)) for name in METHODS]
    lines += [*table(("method", *(f"`{head}`" for head in heads)), rows), PAIRS]
    rows = [(f"`{student}`", f"`{teacher}`", ", ".join(_serving(student, teacher))) for student, teacher in COMMON]
    lines += table(("student", "teacher", "methods"), rows)
    return "\n".join(lines) + "\n"


def _serving(student: str, teacher: str) -> list[str]:
    """The methods that serve a pair of heads, as links."""
    infos = detector_info(student), detector_info(teacher)
    return [f"[`{name}`](methods/{name}.md)" for name in METHODS if serves(name, *infos)]


def method_page(name: str) -> str:
    """The content of methods/NAME.md."""
    method, flow = METHODS[name], _flow(name)
    summary, _, rest = (inspect.getdoc(inspect.getmodule(method)) or "").partition("\n")
    facts = (
        ("the student copies", method.copies),
        ("student and teacher need", method.requires),
        ("reads", method.reads),
        ("learns", method.learns or "nothing"),
        ("labels", "not read: images without labels serve, too" if method.unlabeled else "read"),
        ("serves two detectors of", ", ".join(f"[`{head}`](../detectors/{head}.md)" for head in heads_served()[name])),
        ("paper", paper_link(method.paper)),
    )
    whole = flow.need.predictions or flow.need.queries or flow.need.classify or flow.need.proposals
    lines = [f"# {name}", "", f"<!-- {NOTE} -->", "", prose(summary), "", *table(("property", "value"), facts), ""]
    lines += ["```sh", _command(name, flow.head), "```", ""]
    lines += [FLOW.format(name=name, head=flow.head, teacher=DIRECTION[bool(whole)])]
    lines += ["## Equation, and where paper and code disagree", "", prose(rest.strip("\n")), ""]
    lines += ["## Options and presets", "", *_options(name), "", OTHER_OPTIONS, ""]
    lines += ["## Published results", "", _published(name), "", "## Measured here", "", *_measured(name)]
    return "\n".join(lines).rstrip() + "\n"


OTHER_OPTIONS = """`published` is the value of an option for the detectors that it names. Every method also has
[options that change its weight during the run](../reference.md#options-of-every-method)."""


def method_drawing(name: str) -> str:
    """The content of methods/NAME.svg."""
    return drawing(name, _flow(name))


@cache
def _flow(name: str) -> Flow:
    return record(name)


def _command(name: str, head: str) -> str:
    edges = " --model.edges" if name == "ld" and head != "gfl" else ""
    return (
        f"detdistill distill --student {head}:resnet18 --teacher runs/teacher --data DATA --method {name}{edges} "
        f"--out runs/{name}"
    )


def _cell(method: str, head: str, heads: Sequence[str]) -> str:
    if head in heads:
        return "yes"
    record = DETECTORS[head]
    if method == "ld" and "edges" in record.options:
        return "edges"
    if method == "detrdistill" and record.group == "queries":
        return "part"
    return "no"


def _options(name: str) -> Iterator[str]:
    config = METHODS[name].Config
    hints = get_type_hints(config) | get_type_hints(Schedule)
    meanings = option_meanings(config) | option_meanings(Schedule)
    published = [item for item in fields(Schedule) if published_values(name, item.name, item.default, value)]
    rows = [
        (
            f"`methods.{name}.{item.name}`",
            value(item.default),
            published_values(name, item.name, item.default, value),
            joined(meanings[item.name], choices(hints[item.name])),
        )
        for item in (*fields(config), *published)
    ]
    return table(("option", "default", "published", "meaning"), rows)


def _published(name: str) -> str:
    gain = METHODS[name].gain
    return f"{gain}, COCO AP. Source: {SOURCES[name]}." if gain and name in SOURCES else NO_GAIN


def _measured(name: str) -> Iterator[str]:
    found = measurements(name)
    for row in found:
        link = f"../results.md#{row.anchor}"
        yield f"[{row.heading}]({link}), with commands and limits:\n"
        shown = [(column, cell) for column, cell in zip(row.columns, row.cells, strict=True) if cell]
        yield from table([column for column, _ in shown], [[cell for _, cell in shown]])
        yield ""
    if not found:
        yield UNMEASURED.format(name=name)
        yield ""
    for row in measurements(name, gained=False):
        yield f"[{row.heading}](../results.md#{row.anchor}):\n"
        yield from table(row.columns, [row.cells])
        yield ""
