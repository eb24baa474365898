"""A data set is inspected before a run, and what was found is printed."""

from pathlib import Path

from rich.console import Console

from detdistill.data import open_data
from detdistill.detectors.build import split_name
from detdistill.distributed import is_main
from detdistill.errors import UserError, plural
from detdistill.files import write_json
from detdistill.inspection.coverage import ANCHOR, ASSIGNERS, HEADS
from detdistill.inspection.data import Inspection, inspect
from detdistill.inspection.findings import share
from detdistill.recipe import DataConfig, ModelConfig, TrainConfig
from detdistill.run.defaults import with_saved_data
from detdistill.run.folder import RunFolder, is_run, require_empty
from detdistill.run.models import adopt
from detdistill.run.tables import printer, show_findings, table

SHOWN = 40  # rows of the table of classes; of more classes, the most and the least frequent ones


def inspect_data(
    data: DataConfig | str,
    *,
    model: ModelConfig = ModelConfig(),
    train: TrainConfig = TrainConfig(),
    out: Path | None = None,
    json: Path | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Inspection:
    """Inspect a data set before a run: counts, sizes, duplicates, leaks between splits, suspicious boxes.

    model: HEAD:BACKBONE or a run folder, whose strides and image size are used; without a name, the strides it sets.
    train: its batch size decides the padding. out: folder for ten drawn samples. json: file for all numbers. Records
    that can't be read are findings and stop nothing. Raises UserError if there is no data set, or for a wrong model.
    """
    if out is not None:
        require_empty(out, overwrite)
    if json is not None and json.is_dir():
        raise UserError(f"--json {json} is a folder: name a file")
    config = DataConfig(path=data) if isinstance(data, str) else data
    config = with_saved_data(config, model.name)
    strides, assigners = _grid(model)
    opened = open_data(config.model_copy(update={"on_bad_record": "skip"}), decode=False)
    say = printer(console)
    for note in opened.notes:
        if note not in opened.faults.notes():  # those are findings
            say(note)
    inspection = inspect(
        opened,
        config,
        strides=strides,
        assigners=assigners,
        batch_size=train.images_per_step,
        out=out if is_main() else None,
    )
    if is_main() and json is not None:
        write_json(json, inspection.to_json())
    if console is not None and is_main():
        for part in (_print_splits, _print_classes, _print_images, _print_boxes, _print_findings):
            console.print()
            part(inspection, console)
    for path in [*inspection.samples[-1:], *([] if json is None else [json])]:
        say(f"written to {path}")
    return inspection


def _grid(model: ModelConfig) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The strides of a model, and the names of its assigners in `ASSIGNERS`; without a name, those of every head."""
    if not model.name:
        return model.strides, tuple(ASSIGNERS)
    if model.name.startswith(("torchvision:", "hf:", "timm:")):
        raise UserError(
            f"--model {model.name}: the strides of a pretrained model are not known here; give HEAD:BACKBONE, a run "
            "folder, or --model.strides"
        )
    name = RunFolder(Path(model.name)).card().model.name if is_run(model.name) else model.name
    head, _ = split_name(name)
    return adopt(model).strides, tuple(assigner for family, assigner in HEADS.items() if family == head)


def _print_splits(inspection: Inspection, console: Console) -> None:
    """The table of the splits. Columns that are empty everywhere are left out."""
    has_crowds = any(counts.crowds for counts in inspection.splits.values())
    has_parts = any(counts.parts for counts in inspection.splits.values())
    columns = ["split", "images", "objects", "without objects"]
    columns += ["crowds"] * has_crowds + ["consists of"] * has_parts
    rows = []
    for name, counts in inspection.splits.items():
        cells = [name, str(counts.images), str(counts.objects), str(counts.empty)]
        rows.append(cells + [str(counts.crowds)] * has_crowds + [" + ".join(counts.parts)] * has_parts)
    table(console, columns, rows)


def _print_classes(inspection: Inspection, console: Console) -> None:
    """The table of the classes: objects per split, and sizes after resizing. Of more than SHOWN classes, the most and
    the least frequent ones.
    """
    boxes = inspection.boxes
    height, width = boxes.canvas
    columns = ["class", *inspection.compared, f"median side at {height}x{width}", f"below stride {min(boxes.strides)}"]
    rows = []
    for name, counts in inspection.classes.items():
        sizes = boxes.classes[name]
        measured = [f"{sizes.side:.0f}", share(sizes.narrower, sizes.boxes)] if sizes.boxes else ["-", "-"]
        rows.append([name, *(str(counts[split]) for split in inspection.compared), *measured])
    if len(rows) > SHOWN:
        rows.sort(key=lambda row: -boxes.classes[row[0]].boxes)
        half = SHOWN // 2
        rows = [*rows[:half], [f"({len(rows) - SHOWN} more)", *["-"] * (len(columns) - 1)], *rows[-half:]]
    table(console, columns, rows)


def _print_images(inspection: Inspection, console: Console) -> None:
    """The table of image sizes."""
    images = inspection.images
    height, width = inspection.boxes.canvas
    rows = [
        ["height", *(f"{value:.0f}" for value in images.height)],
        ["width", *(f"{value:.0f}" for value in images.width)],
        ["width / height", *(f"{value:.2f}" for value in images.aspect)],
        [f"scale to {height}x{width}", *(f"{value:.2f}" for value in images.scale)],
    ]
    table(console, ["images", "smallest", "median", "largest"], rows)
    common = ", ".join(f"{high}x{wide} {share(count, inspection.total)}" for high, wide, count in images.common)
    console.print(f"{plural(images.different, 'size')} (height x width), the most common: {common}")
    console.print(f"{100 * images.padding:.0f} % of the pixels of a batch are padding")


def _print_boxes(inspection: Inspection, console: Console) -> None:
    """The tables of box sizes: as COCO groups them, and against the strides."""
    boxes = inspection.boxes
    height, width = boxes.canvas
    groups = {"in the files": boxes.in_file, f"at {height}x{width}": boxes.resized}
    rows = [[name, *(share(count, boxes.boxes) for count in counts)] for name, counts in groups.items()]
    table(console, ["boxes", "small (< 32²)", "medium", "large (>= 96²)"], rows)
    console.print()
    rows = []
    for each in boxes.levels:
        shares = [share(each.nearest, boxes.boxes), share(each.narrower, boxes.boxes)]
        rows.append([str(each.stride), f"{ANCHOR * each.stride:.0f}", *shares])
    table(console, ["stride", "side of anchors", "boxes nearest in size", "boxes narrower than a cell"], rows)
    for assigner, count in boxes.uncovered.items():
        heads = ", ".join(head for head, name in HEADS.items() if name == assigner)
        console.print(f"boxes without a positive cell ({heads}): {share(count, boxes.looked_at)} of {boxes.looked_at}")


def _print_findings(inspection: Inspection, console: Console) -> None:
    """Each finding with its examples and the remedy, the worst first; then the verdict."""
    if inspection.looked_at < inspection.total:
        console.print(f"pixels: {inspection.looked_at} of {inspection.total} images were decoded, spread evenly")
    show_findings(console, inspection.findings)
    console.print(inspection.verdict, soft_wrap=not console.is_terminal)
