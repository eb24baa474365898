"""Export every family in every format and precision, and compare each file with its detector.

    python bench/export.py [--json FILE] [--markdown FILE] [--families NAME ...] [--runs DIR --data DATA] [--opsets]

Without runs, each family is a small detector with random weights: the exports must be equal; their time says little.
With `--runs DIR`, every run folder in DIR is exported too, measured on the evaluation split of `--data`, and its AP,
file size and milliseconds of one image are in the table; int8 is calibrated on the train split. `--opsets` exports each
family with ONNX's opsets 17 to 21 instead of the formats.
With --json, finished rows are not run again, so that the script can be stopped and continued. A row that is not equal
and has no reason makes the exit code 1. Nothing is downloaded.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import onnx
import torch

from detdistill import run
from detdistill.detectors.build import build
from detdistill.errors import UserError
from detdistill.exporting import SUFFIXES, onnx_file
from detdistill.exporting import trace as tracing
from detdistill.exporting.card import ExportCard
from detdistill.exporting.trace import Trace
from detdistill.recipe import DataConfig, ModelConfig, TrainConfig
from detdistill.run.exports import record_path

TRACE, TO_MODEL = tracing.trace, onnx_file.to_model
CLASSES = ("disc", "square", "star")
SIZE = (96, 128)
SMALL: dict[str, Any] = {"channels": 32, "backbone_weights": "none", "strides": (8, 16, 32)}
DENSE = {"tower_depth": 1}
QUERIES = {"queries": 20, "decoder_layers": 2}
ENCODER = {"encoder_layers": 1}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gfl": ("gfl", DENSE),
    "gfl, pafpn": ("gfl", {**DENSE, "neck": "pafpn"}),
    "gfl, depthwise": ("gfl", {**DENSE, "depthwise": True}),
    "atss": ("atss", DENSE),
    "retinanet": ("retinanet", DENSE),
    "fcos": ("fcos", DENSE),
    "faster_rcnn": ("faster_rcnn", {}),
    "mask_rcnn": ("mask_rcnn", {}),
    "detr": ("detr", {**QUERIES, **ENCODER, "strides": (32,)}),
    "conditional_detr": ("conditional_detr", {**QUERIES, **ENCODER, "strides": (32,)}),
    "dab_detr": ("dab_detr", {**QUERIES, **ENCODER, "strides": (32,)}),
    "deformable_detr": ("deformable_detr", {**QUERIES, **ENCODER}),
    "deformable_detr, two_stage": ("deformable_detr", {**QUERIES, **ENCODER, "two_stage": True}),
    "rt_detr": ("rt_detr", QUERIES),
    "rt_detr_v2": ("rt_detr_v2", QUERIES),
    "d_fine": ("d_fine", QUERIES),
    "adamixer": ("adamixer", QUERIES),
}
"""Head and fields of the model, by the name in the table."""

FORMATS = (("onnx", "fp32"), ("onnx", "fp16"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "fp16"))
FORMATS = (*FORMATS, ("openvino", "int8"), ("torch", "fp32"))
COLUMNS = ("model", "format", "precision", "opset", "equal", "score", "box", "sizes", "AP", "AP of the file", "MiB")
COLUMNS = (*COLUMNS, "ms", "ms in PyTorch")


def families(names: Sequence[str], folder: Path) -> Iterator[tuple[str, Path]]:
    """The names and run folders of small detectors with random weights."""
    for name in names:
        head, fields = FAMILIES[name]
        torch.manual_seed(0)
        target = folder / name.replace(", ", "_")
        detector = build(ModelConfig(name=f"{head}:resnet18", **SMALL | fields), CLASSES)
        run.save(detector, target, image_size=SIZE)
        yield name, target


class Shared:
    """Inside this context, the files of one detector share its traces and ONNX models, which takes most of the time."""

    def __init__(self) -> None:
        self.traces: dict[bool, Trace] = {}
        self.models: dict[int, bytes] = {}

    def clear(self) -> None:
        """Begin with another detector."""
        self.traces.clear()
        self.models.clear()

    def trace(self, detector: Any, canvas: tuple[int, int], *, fixed: bool, plain: bool) -> Trace:
        if plain not in self.traces:
            self.traces[plain] = TRACE(detector, canvas, fixed=fixed, plain=plain)
        return self.traces[plain]

    def to_model(self, trace: Trace, card: ExportCard, opset: int) -> onnx.ModelProto:
        if opset not in self.models:
            self.models[opset] = TO_MODEL(trace, card, opset).SerializeToString()
        model = onnx.ModelProto.FromString(self.models[opset])
        values = card.metadata()
        for entry in model.metadata_props:
            entry.value = values[entry.key]
        return model

    def patches(self) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(patch("detdistill.exporting.trace.trace", self.trace))
        stack.enter_context(patch("detdistill.exporting.onnx_file.to_model", self.to_model))
        return stack


def row(
    name: str, model: Path, kind: str, precision: str, opset: int, data: DataConfig | None, folder: Path
) -> dict[str, Any]:
    """Export one file, and give its row. `equal` is yes, or why there is no file."""
    started = time.perf_counter()
    out = folder / f"model{SUFFIXES[kind]}"
    begin = {"model": name, "format": kind, "precision": precision, "opset": opset if kind != "torch" else None}
    shapes = DataConfig(path="shapes:16", image_size=SIZE)
    try:
        run.export(
            model,
            out,
            precision=precision,  # type: ignore[arg-type]
            opset=opset,
            data=data or (shapes if precision == "int8" else None),
            train=TrainConfig(device="cpu", workers=0),
            force=True,
            overwrite=True,
        )
    except UserError as error:
        return begin | {"equal": str(error).replace(f"{out}: ", "").replace(str(model), "PyTorch")}
    except Exception as error:  # whatever fails is the result
        return begin | {"equal": f"failed: {type(error).__name__}: {str(error)[:160]}", "failed": True}
    record = json.loads(record_path(out).read_text())
    found, ap = record["difference"], record.get("AP", {}) if data else {}
    return begin | {
        "equal": "yes" if precision != "int8" else "by AP",
        "partners": 1 - found["alone"] / max(found["detections"], 1),
        "score": found["score"],
        "box": found["box"],
        "sizes": "any" if record["multiple"] else "at most {} x {}".format(*record["canvas"]),
        "AP": ap.get("detector"),
        "AP of the file": ap.get("file"),
        "MiB": record["bytes"] / 2**20,
        "ms": record["file_ms"],
        "ms in PyTorch": record["torch_ms"],
        "threads": record["threads"],
        "seconds": round(time.perf_counter() - started, 1),
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for entry in rows:
        lines.append(f"| {' | '.join(_text(column, entry.get(column)) for column in COLUMNS)} |")
    return "\n".join(lines) + "\n"


def _text(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1g}" if column in ("score", "box") else f"{value:.2f}" if "AP" in column else f"{value:.1f}"
    return str(value).replace("|", "/")


def jobs(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path, str, str, int, DataConfig | None]]:
    """What to export."""
    for name, model in families(options.families, folder):
        if options.opsets:
            yield from ((name, model, "onnx", "fp32", opset, None) for opset in range(17, 22))
        else:
            yield from ((name, model, kind, precision, 18, None) for kind, precision in FORMATS)
    runs = sorted(path.parent for path in options.runs.glob("**/model.json")) if options.runs else []
    for model in runs:
        data = DataConfig(path=options.data)
        for kind, precision in FORMATS:
            yield (str(model.relative_to(options.runs)), model, kind, precision, 18, data)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES), help="default: all")
    parser.add_argument("--runs", type=Path, help="folder with run folders, at any depth")
    parser.add_argument("--data", help="data set of the runs")
    parser.add_argument("--opsets", action="store_true", help="opsets 17 to 21 of ONNX instead of the formats")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch and of the runtimes")
    parser.add_argument("--json", type=Path, help="write the rows to this file, and skip the rows that it has")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    options = parser.parse_args()
    if bool(options.runs) != bool(options.data):
        parser.error("--runs and --data belong together")
    if options.runs and not list(options.runs.glob("**/model.json")):
        parser.error(f"--runs {options.runs}: no run folder in it")
    return options


def main() -> int:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    rows = json.loads(options.json.read_text())["rows"] if options.json and options.json.exists() else []
    done = {tuple(entry[key] for key in ("model", "format", "precision", "opset")) for entry in rows}
    shared, previous = Shared(), None
    with TemporaryDirectory() as folder, shared.patches():
        for name, model, kind, precision, opset, data in jobs(options, Path(folder)):
            if (name, kind, precision, opset if kind != "torch" else None) in done:
                continue
            if model != previous:
                shared.clear()
            previous = model
            rows.append(row(name, model, kind, precision, opset, data, Path(folder)))
            print(*(f"{key}: {value}" for key, value in rows[-1].items()), sep=", ", flush=True)
            if options.json:
                options.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    table = markdown(rows)
    print(table)
    if options.markdown:
        options.markdown.write_text(table)
    return int(any(entry.get("failed") or "other detections" in entry["equal"] for entry in rows))


if __name__ == "__main__":
    raise SystemExit(main())
