"""A trained detector in the format of another library, verified."""

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console
from torch import Tensor

from detdistill.data import Data, EvalLoader, Split, open_data
from detdistill.data.transforms import sides
from detdistill.errors import UserError, plural
from detdistill.exporting import EXTRAS, SUFFIXES, Format, Precision
from detdistill.exporting.runtime import is_exported
from detdistill.files import replacing, write_json
from detdistill.recipe import DataConfig, TrainConfig
from detdistill.run.defaults import with_known_size, with_saved_data
from detdistill.run.evaluating import check_classes, measure
from detdistill.run.folder import RunFolder
from detdistill.run.models import category_ids_of, find_detector, load
from detdistill.run.tables import Say, printer
from detdistill.types import Detector, padded_size

if TYPE_CHECKING:
    from detdistill.exporting.check import Difference, Tolerance

SAMPLES = 9  # images of the comparison
CALIBRATION = 100  # images, at most, from which the ranges of int8 are taken
AP_TOLERANCE = 0.05  # in percent points: AP of the file and of the detector that count as equal


@dataclass(frozen=True)
class ExportOptions:
    """How a file is made. The fields are arguments of `export`."""

    precision: Precision
    opset: int
    fixed: bool
    max_loss: float
    force: bool

    @property
    def tolerance(self) -> "Tolerance":
        """Of the comparison with the detector."""
        from detdistill.exporting.check import TOLERANCES

        return TOLERANCES[self.precision]


def export(
    model: str | Path,
    out: Path,
    *,
    format: Format | None = None,
    precision: Precision = "fp32",
    opset: int = 18,
    fixed: bool = False,
    max_loss: float = 1.0,
    force: bool = False,
    data: DataConfig | None = None,
    train: TrainConfig = TrainConfig(),
    overwrite: bool = False,
    console: Console | None = None,
) -> Path:
    """Export a detector, load the exported file again, and verify that it gives the same detections. Returns `out`.

    model: a run folder or a pretrained detector. format: onnx, openvino and torch write one graph from pixels to
    detections; transformers writes a folder that its from_pretrained loads without detdistill. None: by the suffix of
    `out`. precision: of the network's products; boxes and scores are always in single precision. opset: of ONNX. fixed:
    accept one size of images only, even if the detector allows any. max_loss: largest loss of AP that fp16 or int8 may
    cost, in percent points. force: write the file even if it loses more.
    data: with a path, the images of the comparison come from its evaluation split, and the AP of the file is measured
    there; else the images are drawn. A record of the comparison is written beside the file, as NAME.json.
    Raises UserError if the detector can't be exported or if the exported one differs; then nothing is written.
    """
    say = printer(console)
    if is_exported(model):
        raise UserError(f"--model {model} is an exported file; give the run folder that it was exported from")
    kind = _format(format, out)
    options = ExportOptions(precision, opset, fixed, max_loss, force)
    if kind == "transformers":
        return _export_folder(model, out, overwrite, say)
    _check_file(out, SUFFIXES[kind], overwrite)
    _check_extras(kind)
    _check_precision(kind, precision)
    config = data or DataConfig()
    given = data is not None and bool(data.path or data.train or data.val or data.test)
    config = with_known_size(with_saved_data(config, model), model, say)
    if precision == "int8" and not given:
        raise UserError("--precision int8: it is calibrated and measured on images; give --data")
    opened = open_data(config) if given else None
    detector, report = find_detector(str(model), opened.classes if opened else ())
    if opened is not None:
        check_classes(detector, opened)
    say(f"model: {report}")
    record = _write(detector.to("cpu").eval(), model, out, kind, options, config, opened, train, say)
    write_json(record_path(out), record)
    return out


def record_path(out: Path) -> Path:
    """Where the record of the comparison of an exported file lies."""
    return out.with_name(f"{out.name}.json")


def _format(format: Format | None, out: Path) -> str:
    """The format that is meant. Raises UserError if it is unknown or does not fit the file's name."""
    by_suffix = {suffix: name for name, suffix in SUFFIXES.items()}
    if format is None:
        return by_suffix.get(out.suffix.lower(), "transformers")
    if format not in get_args(Format):
        raise UserError(f"--format {format!r}: choose one of {', '.join(get_args(Format))}")
    if format in SUFFIXES and out.suffix.lower() != SUFFIXES[format]:
        raise UserError(f"--out {out}: a file of --format {format} ends in {SUFFIXES[format]}")
    return format


def _check_extras(kind: str) -> None:
    """Raises UserError if a library that the format needs is not installed."""
    missing = [name for name in EXTRAS.get(kind, ()) if find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format {kind}: {', '.join(missing)} is missing; install it with `pip install 'detdistill[{kind}]'`"
        )


def _check_precision(kind: str, precision: str) -> None:
    """Raises UserError if the format can't have the precision."""
    if precision not in get_args(Precision):
        raise UserError(f"--precision {precision!r}: choose one of {', '.join(get_args(Precision))}")
    from detdistill.exporting.formats import GRAPH_FORMATS

    if precision not in (own := GRAPH_FORMATS[kind].precisions):
        others = " or ".join(name for name, form in GRAPH_FORMATS.items() if precision in form.precisions)
        raise UserError(f"--precision {precision}: a file of --format {kind} has {', '.join(own)}; choose {others}")


def _export_folder(model: str | Path, out: Path, overwrite: bool, say: Say) -> Path:
    """Write the folder of transformers."""
    from detdistill.exporting import transformers  # importing that library takes seconds

    height, width = sides(RunFolder(Path(model)).card().image_size)
    transformers.export(load(model), out, (height, width), overwrite=overwrite)
    say(
        f"{out}: AutoModelForObjectDetection.from_pretrained loads it; its boxes equal those of {model} on images of "
        f"{height} x {width}"
    )
    return out


def _check_file(out: Path, suffix: str, overwrite: bool) -> None:
    """Raises UserError if a file must not be written to `out`."""
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file, such as {out / f'model{suffix}'}")
    if out.exists() and not overwrite:
        raise UserError(f"--out {out} exists: replace it with --overwrite, or choose another name")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise UserError(f"--out {out}: {parent} is a file, not a folder")


def _write(
    detector: Detector,
    model: str | Path,
    out: Path,
    kind: str,
    options: ExportOptions,
    config: DataConfig,
    data: Data | None,
    train: TrainConfig,
    say: Say,
) -> dict[str, Any]:
    """Write and verify one file, and return the record of the comparison."""
    from detdistill.exporting import check, describe  # these import libraries that are extras
    from detdistill.exporting.formats import GRAPH_FORMATS, Job
    from detdistill.exporting.runtime import ExportedDetector
    from detdistill.exporting.trace import trace

    form, size = GRAPH_FORMATS[kind], sides(config.image_size)
    split = data.evaluation_split(config) if data is not None else None
    images = sample_images(split, config, size)
    calibration = _calibration_images(data, split, config, say) if options.precision == "int8" else []
    say(f"exporting {detector.info.kind} for images of {size[0]} x {size[1]}")
    canvas = padded_size(size)
    traced = trace(detector, canvas, fixed=options.fixed, plain=form.is_plain)
    ids = category_ids_of(str(model), detector)
    card = describe.make_card(detector, ids, size, canvas if not traced.dynamic else None, options.precision)
    if traced.reason:
        say(f"note: images are padded to {canvas[0]} x {canvas[1]} inside, because {traced.reason}")
    with replacing(out) as temporary, ExitStack() as companions:
        for suffix in form.companions:  # they appear before the file itself, which is not read without them
            companions.enter_context(replacing(out.with_suffix(suffix)))
        form.write(Job(traced, card, options.opset, images, calibration, say), temporary)
        exported = ExportedDetector(temporary)
        found = check.compare(detector, exported, check.sample_batches(images), card, options.tolerance)
        _check_difference(found, len(images), f"{out}: {form.runtime}", model, options, say)
        record: dict[str, Any] = {**asdict(card), "format": kind, "difference": asdict(found)}
        if kind != "torch":
            record["opset"] = options.opset
        if data is not None and split is not None:
            record["AP"] = _measured(check.Alone(detector, card), exported, data, split, config, train)
            _check_ap(record["AP"], out, options, say)
        record |= describe.latencies(detector, exported, check.padded(images[0][None], card))
        files = [temporary, *(temporary.with_suffix(suffix) for suffix in form.companions)]
        record |= {"images_of_calibration": len(calibration), "bytes": sum(file.stat().st_size for file in files)}
    say(_summary(out, record))
    return record


def _check_difference(
    found: "Difference", images: int, file: str, model: str | Path, options: ExportOptions, say: Say
) -> None:
    """Say how much the detections differ. Raises UserError if they should be equal and are not."""
    if options.precision == "int8":
        say(f"compared with {model}: {found.text()}")  # whether int8 is good enough is a question of the AP
    elif found.fits(options.tolerance):
        say(f"equal to {model} on {images} images, a batch of three and an empty picture: {found.text()}")
    else:
        raise UserError(f"{file} gives other detections than {model}: {found.text()}; nothing is written")


def _calibration_images(data: Data | None, split: Split | None, config: DataConfig, say: Say) -> list[Tensor]:
    """Training images, spread over the split, (3, H, W) uint8 each."""
    assert data is not None and split is not None
    if "train" not in data.splits:
        raise UserError("--precision int8: the data has no train split to calibrate on; add one to --data")
    if split.name == "train":
        problem = "the file is calibrated on the train split, so its AP must be measured on another one"
        raise UserError(f"--precision int8: {problem}; choose it with --data.eval-split")
    images = _images(data.split("train"), config, CALIBRATION)
    say(f"calibrating int8 on {len(images)} images of the train split")
    return images


def sample_images(split: Split | None, config: DataConfig, size: tuple[int, int]) -> list[Tensor]:
    """Images for a comparison, (3, H, W) uint8 each: of the split, spread over it, or drawn if there is none."""
    if split is None or len(split) < 3:
        split = open_data(DataConfig(path=f"shapes:{SAMPLES}")).split("train")
    return _images(split, config, SAMPLES)


def _images(split: Split, config: DataConfig, count: int) -> list[Tensor]:
    """At most `count` images of the split, spread over it, without padding."""
    loader = EvalLoader(split.take(count), config, batch_size=1)
    return [batch.images[0, :, :height, :width] for batch, _ in loader for height, width in batch.sizes.tolist()]


def _measured(
    own: Any, exported: Any, data: Data, split: Split, config: DataConfig, train: TrainConfig
) -> dict[str, float | None]:
    """The AP of the detector and of the file on the split, in percent."""
    sides_of = {"detector": own, "file": exported}
    return {
        name: measure(detector, data, split, config, train, costs=False)[0]["AP"] for name, detector in sides_of.items()
    }


def _check_ap(values: dict[str, float | None], out: Path, options: ExportOptions, say: Say) -> None:
    """Raises UserError if the file loses more AP than it may."""
    own, exported = values["detector"], values["file"]
    if own is None or exported is None:
        if options.precision == "int8" and not options.force:
            raise UserError(
                f"{out}: the split has no objects, so the AP that int8 costs is not known; accept it with --force"
            )
        return
    allowed = AP_TOLERANCE if options.precision == "fp32" else options.max_loss
    say(f"AP of the detector {own:.2f}, of the file {exported:.2f}")
    if own - exported > allowed and not options.force:
        remedy = "" if options.precision == "fp32" else "; accept it with --max-loss or --force, or export fp32"
        raise UserError(f"{out}: the file loses {own - exported:.2f} AP, and {allowed:g} is allowed{remedy}")


def _summary(out: Path, record: dict[str, Any]) -> str:
    """One line on a written file."""
    sizes = "any size" if record["multiple"] else "at most {} x {}".format(*record["canvas"])
    return (
        f"{out}: {record['bytes'] / 2**20:.1f} MiB, {record['precision']}, images of {sizes}; {record['file_ms']:.1f} "
        f"ms per image, {record['torch_ms']:.1f} ms in PyTorch ({plural(record['threads'], 'thread')})"
    )
