"""Try a small backbone of each family of timm: build a detector, load weights from a file, train, export.

    python bench/backbones.py [--json FILE] [--markdown FILE] [--backbone NAME ...]

For each backbone, the plain timm model with random weights is saved to a file. A GFL is built on the backbone with
these weights, the tensors are compared with the file, two steps train it on two built-in images of 96 x 128, and it
detects on larger ones. An RT-DETR on the backbone is exported to transformers, loaded there alone and compared. Nothing
is downloaded.
With --json, finished backbones are not run again, so that the script can be stopped and continued.
The exit code is 1 if a backbone failed: it was neither refused with a reason, nor did it build, load and train.
"""

import argparse
import json
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from detdistill.detectors.build import build
from detdistill.detectors.timm.backbone import build_backbone
from detdistill.detectors.timm.examples import EXAMPLES
from detdistill.errors import UserError
from detdistill.exporting.transformers import export
from detdistill.recipe import ModelConfig
from detdistill.run.backbones import describe, normalization
from detdistill.testing import learn, scene
from detdistill.types import Need

CLASSES = ("disc", "square", "star")
REFUSED = (
    "efficientformer_l1",
    "efficientformerv2_s0",
    "coat_tiny",
    "hiera_tiny_224",
    "levit_128s",
    "mvitv2_tiny",
    "inception_v3",
)
SIZE = (96, 128)  # of the images in training
LARGE_SIZE = (288, 416)  # larger than most transformers of timm were designed for
EXPORT_SIZE = (256, 256)  # a multiple of everything that a backbone needs
STEPS = 2
LEVELS = 3  # of the detectors' pyramids: the first of the recipe's default strides that the backbone has
COLUMNS = ("backbone", "parameters", "operations", "strides", "normalization", "loads", "trains", "exports", "remark")


def run(name: str, folder: Path) -> dict[str, Any]:
    """The row of one backbone. `loads`, `trains` and `exports` are `yes`, or what went wrong."""
    started = time.perf_counter()
    facts = describe(name, (320, 320))
    row = {
        "backbone": name,
        "parameters": facts.parameters,
        "operations": facts.operations,
        "strides": facts.strides,
        "normalization": normalization(facts.statistics),
        "remark": facts.remark,
    }
    if facts.parameters is None:
        try:
            build_backbone(name, ModelConfig().strides, "none")
        except UserError as error:
            row["remark"] = str(error).removeprefix(f"backbone {name!r}: ")
    else:
        strides = [stride for stride in ModelConfig().strides if stride in facts.strides][:LEVELS]
        row |= try_detectors(name, tuple(strides), folder)
    return row | {"seconds": round(time.perf_counter() - started, 1)}


def try_detectors(name: str, strides: tuple[int, ...], folder: Path) -> dict[str, str]:
    """Build a GFL with weights from a file, train it, and export an RT-DETR."""
    torch.manual_seed(0)
    plain = timm.create_model(name, pretrained=False).state_dict()
    file = folder / f"{name}.safetensors"
    save_file({key: value.contiguous().clone() for key, value in plain.items()}, file)
    fields = {"strides": strides, "channels": 64, "tower_depth": 1}
    try:
        detector: Any = build(ModelConfig(name=f"gfl:{name}", backbone_weights=str(file), **fields), CLASSES)
    except Exception as error:  # whatever fails is the result
        return {"loads": reason(error), "trains": "no", "exports": "no"}
    loads = "yes" if same_tensors(detector.backbone_parameters(), plain) else "other values than the file"
    return {"loads": loads, "trains": train(detector), "exports": try_export(name, strides, folder)}


def same_tensors(parameters: list[nn.Parameter], plain: Mapping[str, Tensor]) -> bool:
    """True if every parameter is equal to a tensor of the plain model."""
    digests = {digest(tensor) for tensor in plain.values()}
    return all(digest(parameter) in digests for parameter in parameters)


def digest(tensor: Tensor) -> bytes:
    return sha256(tensor.detach().contiguous().numpy().tobytes()).digest()


def train(detector: Any) -> str:
    """Two steps on the built-in images, and the predictions on larger ones.

    `yes` if all losses and predictions are finite and the parameters of the backbone changed.
    """
    backbone = detector.backbone_parameters()
    before = [parameter.detach().clone() for parameter in backbone]
    try:
        rows = learn(detector, None, [], scene(len(CLASSES), SIZE), STEPS)
        with torch.no_grad():
            batch, _ = scene(len(CLASSES), LARGE_SIZE)
            logits = detector.eval().observe(batch, need=Need(predictions=True)).stages[-1].logits
    except Exception as error:  # whatever fails is the result
        return reason(error)
    if not all(torch.tensor(value).isfinite() for row in rows for value in row.values()):
        return "a loss is not finite"
    if not logits.isfinite().all():
        return "a prediction is not finite"
    changed = sum(not torch.equal(old, new) for old, new in zip(before, backbone, strict=True))
    unused = sum(parameter.grad is None for parameter in backbone)
    if changed + unused < 0.9 * len(backbone):
        return f"only {changed} of {len(backbone)} tensors changed"
    return f"yes, {unused} of {len(backbone)} tensors unused" if unused else "yes"


def try_export(name: str, strides: tuple[int, ...], folder: Path) -> str:
    torch.manual_seed(0)
    fields = {"strides": strides, "channels": 64, "queries": 10, "encoder_layers": 1, "decoder_layers": 2}
    try:
        detector = build(ModelConfig(name=f"rt_detr:{name}", backbone_weights="none", **fields), CLASSES)
        with TemporaryDirectory(dir=folder) as out:
            export(detector, Path(out) / "exported", EXPORT_SIZE)
    except Exception as error:  # whatever fails is the result
        return reason(error)
    return "yes"


def reason(error: Exception) -> str:
    """The message of a refusal, or the kind and the message of another error, in one line."""
    text = " ".join(str(error).split())
    return f"no: {text}" if isinstance(error, UserError) else f"FAILED: {type(error).__name__}: {text[:200]}"


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, and the reasons of the cells that are not `yes`, numbered."""
    reasons: dict[str, int] = {}

    def state(row: dict[str, Any], column: str) -> str:
        text = row.get(column, "-")
        if not text.startswith(("no: ", "FAILED: ")):
            return text
        word, _, reason = text.partition(": ")
        number = reasons.setdefault(reason.replace(row["backbone"], "it"), len(reasons) + 1)
        return f"{word} [{number}]"

    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        parameters, operations = row["parameters"], row["operations"]
        cells = [
            row["backbone"],
            "-" if parameters is None else f"{parameters / 1e6:.2f} M",
            "-" if operations is None else f"{operations / 1e9:.2f} G",
            ", ".join(map(str, row["strides"])) or "-",
            row["normalization"],
            *(state(row, column) for column in ("loads", "trains", "exports")),
            row["remark"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"{number}. {reason}" for reason, number in reasons.items())]
    return "\n".join(lines) + "\n"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", default=[*EXAMPLES, *REFUSED], help="default: all")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--json", type=Path, help="write the rows to this file, and skip the backbones that it has")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    done: dict[str, dict[str, Any]] = {}
    if options.json and options.json.exists():
        done = {row["backbone"]: row for row in json.loads(options.json.read_text())["rows"]}
    for name in options.backbone:
        if name in done:
            continue
        with TemporaryDirectory() as folder:
            done[name] = row = run(name, Path(folder))
        states = [f"{column} {row.get(column, '-')}" for column in ("loads", "trains", "exports")]
        print(f"{name:32} {row['seconds']:6.1f} s  {', '.join(states)}", flush=True)
        if options.json:
            options.json.write_text(json.dumps({"rows": list(done.values())}, indent=2) + "\n")
    rows = [done[name] for name in options.backbone]
    table = markdown(rows)
    print(table)
    if options.markdown:
        options.markdown.write_text(table)
    served = [row for row in rows if row["parameters"] is not None]
    failed = [row for row in served if row["loads"] != "yes" or not row["trains"].startswith("yes")]
    print(f"{len(served)} of {len(rows)} backbones serve, {len(rows) - len(served)} are refused, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
