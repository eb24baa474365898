"""`detdistill list`: the detectors, methods, backbones and recipes, or everything about one of them."""

from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from detdistill.cli import facts, flags, index
from detdistill.cli.app import ORIGIN, app
from detdistill.cli.backbones import backbones
from detdistill.cli.facts import Facts
from detdistill.cli.output import STDOUT, Output
from detdistill.errors import UserError, nearest
from detdistill.printing import grouped, table
from detdistill.recipe import load, packaged

WIDE = 200  # terminal columns from which a method's row fits on one line


@app.command(name="list", sort_key=11, usage="Usage: detdistill list WHAT [NAME] [OPTIONS]")
@flags.takes("data.image_size", quiet=False)
def show(
    what: Annotated[Literal["detectors", "methods", "backbones", "recipes"], Parameter(help="what to list")],
    name: Annotated[str | None, Parameter(help="one detector or method, or a pattern for backbones: 'resnet*'")] = None,
    /,
    *,
    output: Output,
    **fields: Any,
) -> None:
    """List the detectors, methods, backbones or recipes; with a name, print everything about a detector or method."""
    # JSON has all that the tables have.
    console = Console(quiet=True) if output.json == STDOUT else output.console
    output.end(listing(what, name, console, flags.overrides(fields)), "")


def listing(what: str, name: str | None, console: Console, over: Mapping[str, Any] | None = None) -> Facts:
    """Print all detectors, methods, backbones or recipes, one per row, or everything about the one called `name`.

    Returns what is known as a mapping for JSON: the list under `what`, or the facts about the one.
    over: fields of the recipe that the command line sets; the backbones read `data.image_size`.
    Raises UserError if there is no such name, or if the list has no details.
    """
    if what == "backbones":
        return {what: backbones(name, load(None, over, origin=ORIGIN).data.image_size, console)}
    if over:
        raise UserError(f"list {what} --image-size: only `list backbones` reads it; leave it out")
    if name is None:
        return {what: {"detectors": _detectors, "methods": _methods, "recipes": _recipes}[what](console)}
    if what == "methods":
        return _one(what, name, index.methods, _method, console)
    if what == "detectors":
        return _one(what, name, index.detectors, _detector, console)
    raise UserError(f"list {what} {name}: only methods and detectors have details; leave out {name}")


def heads_in_words(heads: Collection[str]) -> str:
    """Heads in few words: `all`, a group such as `dense`, a group with its exceptions, `learned queries`, or names."""
    from detdistill.detectors.registry import DETECTORS, names

    groups = {"dense": names("dense"), "RoI": names("two-stage"), "queries": names("queries")}
    learned = {name for name in groups["queries"] if DETECTORS[name].learned_queries}
    parts = []
    for word, members in groups.items():
        served = [head for head in members if head in heads]
        missing = [head for head in members if head not in heads]
        if set(served) == learned:
            parts.append("learned queries")
        elif 2 * len(served) > len(members):
            parts.append(word + (f" except {', '.join(missing)}" if missing else ""))
        else:
            parts += served
    return "all" if parts == list(groups) else ", ".join(parts)


def _one(
    what: str,
    name: str,
    known: Callable[[], list[Facts]],
    print_one: Callable[[Facts, Console], None],
    console: Console,
) -> Facts:
    """Print the entry called `name`, and return it. Raises UserError with a similar name if there is none."""
    entries = {entry["name"]: entry for entry in known()}
    plain = name.replace("-", "_")
    if plain not in entries:
        problem = f"there is no such {what.removesuffix('s')}{nearest(plain, entries)}"
        raise UserError(f"list {what} {plain}: {problem} (see `detdistill list {what}`)")
    print_one(entries[plain], console)
    return entries[plain]


def _detectors(console: Console) -> list[Facts]:
    entries = index.detectors()
    families = ", ".join(entry["name"] for entry in entries if entry["in_transformers"])
    blocks = {
        "to train": [[f"{entry['name']}:BACKBONE", entry["summary"]] for entry in entries],
        "to teach, evaluate and predict": [
            *([f"torchvision:{name}", "COCO weights of torchvision"] for name in index.torchvision_names()),
            ["hf:NAME, hf:FOLDER", f"a detector of transformers: {families}"],
        ],
        "to teach by features": [["timm:NAME, timm:NAME=FILE, hf:FOLDER", "a frozen ViT"]],
    }
    grouped(console, ["detector", "description"], blocks)
    console.print(
        "BACKBONE is a timm model, such as resnet18 (detdistill list backbones). "
        "Options of one detector: detdistill list detectors gfl",
        soft_wrap=False,
    )
    return entries


def _detector(entry: Facts, console: Console) -> None:
    """One family: what it is, the strides it was published with, and its options."""
    console.print(entry["summary"], soft_wrap=False)
    console.print(f"default strides: {facts.in_words(entry['strides'])}", soft_wrap=False)
    if entry["group"] == "queries":
        queries = "learned parameters" if entry["learned_queries"] else "chosen from each image"
        console.print(f"queries: {queries}", soft_wrap=False)
    columns = ["name", "default", "meaning"]
    rows = [[option[column] for column in columns] for option in entry["options"]]
    table(console, ["option", *columns[1:]], rows)


def _methods(console: Console) -> list[Facts]:
    from detdistill.detectors.registry import names

    entries = index.methods()
    blocks: dict[str, list[list[str]]] = {}
    for entry in entries:
        heads = heads_in_words(entry["heads"])
        row = [entry["name"], heads, entry["reads"], entry["gain"] or "-", entry["paper"]]
        blocks.setdefault(entry["group"], []).append(row)
    columns = ["method", "heads", "reads", "published AP on COCO", "paper"]
    shown = len(columns) if not console.is_terminal or console.width >= WIDE else 3
    grouped(console, columns[:shown], {group: [row[:shown] for row in block] for group, block in blocks.items()})
    kinds = {"dense": names("dense"), "RoI": names("two-stage"), "queries": names("queries")}
    console.print("; ".join(f"{word}: {', '.join(members)}" for word, members in kinds.items()) + ".", soft_wrap=False)
    console.print(
        "ld also serves retinanet, fcos and atss if they are built with --model.edges. detrdistill also serves "
        "rt_detr, rt_detr_v2, d_fine and a two-stage deformable_detr with --methods.detrdistill.weight-assignment 0.",
        soft_wrap=False,
    )
    console.print("Paper, published AP and options of one method: detdistill list methods pkd", soft_wrap=False)
    return entries


def _method(entry: Facts, console: Console) -> None:
    """One method: what it reads and learns, and its options with defaults and published values per detector."""
    console.print(entry["summary"], soft_wrap=False)
    for title, text in (
        ("paper", entry["paper"] or "not stated"),
        ("reads", entry["reads"] or "not stated"),
        ("learns", entry["learns"] or "nothing"),
        ("heads", ", ".join(entry["heads"])),
        ("published AP on COCO", entry["gain"] or "none that could be verified"),
    ):
        console.print(f"{title}: {text}", soft_wrap=False)
    columns = ["name", "default", "published", "meaning"]
    rows = [[option[column] for column in columns] for option in entry["options"]]
    table(console, ["option", *columns[1:]], rows)
    console.print(
        f"Set an option with --methods.{entry['name']}.OPTION VALUE. Published values apply unless you set the option.",
        soft_wrap=False,
    )


def _recipes(console: Console) -> list[Facts]:
    summaries = {
        name: path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("#").strip()
        for name, path in packaged().items()
    }
    table(console, ["recipe", "description"], [list(row) for row in summaries.items()])
    return [{"name": name, "summary": summary} for name, summary in summaries.items()]
