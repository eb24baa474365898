"""Files of every format give the detector's detections, and a changed file is refused. Images are drawn."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from detdistill import cli, run
from detdistill.errors import UserError
from detdistill.exporting import check, onnx_file, openvino_file, torch_file
from detdistill.exporting.runtime import ExportedDetector
from detdistill.recipe import DataConfig

pytestmark = pytest.mark.usefixtures("calls_without_tracing")
FORMATS = {".onnx": ("onnx", 1), ".xml": ("openvino", 2), ".pt2": ("torch", 1)}
READER = """
import sys
sys.modules["detdistill"] = None  # its import fails
import numpy, torch, torchvision
path, inputs, outputs = sys.argv[1:]
images, sizes = (torch.from_numpy(value) for value in numpy.load(inputs).values())
with torch.no_grad():
    boxes, scores, labels = torch.export.load(path).module(check_guards=False)(images, sizes)
numpy.savez(outputs, boxes=boxes, scores=scores, labels=labels)
"""


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_gives_the_detections_of_the_detector(suffix: str, small: Any, small_run: Path, tmp_path: Path) -> None:
    out = run.export(small_run, tmp_path / f"model{suffix}")
    kind, count = FORMATS[suffix]
    record = json.loads((tmp_path / f"model{suffix}.json").read_text())
    assert (record["format"], record["precision"], record["difference"]["alone"]) == (kind, "fp32", 0)
    assert record["difference"]["detections"] > 20
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) == count + 1 and record["bytes"] == sum(
        (tmp_path / name).stat().st_size for name in files if not name.endswith(".json")
    )
    exported = ExportedDetector(out, threads=1)
    assert exported.card.classes == small.info.classes and exported.card.image_size == (64, 96)
    random = torch.randint(0, 256, (3, 3, 70, 41), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tiny = random[:1, :, :20]  # one row of cells on the coarsest level
    found = check.compare(small, exported, [random, tiny], exported.card, check.TOLERANCES["fp32"])
    assert found.alone == 0 and found.detections > 20


def _wrong_onnx(model: onnx.ModelProto, path: Path, save: Callable[..., None]) -> None:
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "detector.head.classifier.weight")
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    save(model, path)


def _wrong_openvino(model: Any, card: Any, path: Path, save: Callable[..., None]) -> None:
    _wrong_onnx(model, path, lambda changed, _: save(changed, card, path))


def _wrong_torch(trace: Any, card: Any, path: Path, save: Callable[..., None]) -> None:
    weight = next(value for value in trace.program.state_dict.values() if value.dim() == 4)
    before = weight.detach().clone()
    try:
        weight.data.neg_()
        save(trace, card, path)
    finally:
        weight.data.copy_(before)


@pytest.mark.parametrize(
    ("suffix", "module", "wrong"),
    [
        (".onnx", onnx_file, _wrong_onnx),
        (".xml", openvino_file, _wrong_openvino),
        (".pt2", torch_file, _wrong_torch),
    ],
)
def test_a_file_with_a_changed_weight_is_refused_and_not_written(
    suffix: str, module: Any, wrong: Any, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = module.save
    monkeypatch.setattr(module, "save", lambda *arguments: wrong(*arguments, save))
    with pytest.raises(UserError, match=r"gives other detections than .*; nothing is written"):
        run.export(small_run, tmp_path / f"model{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_loses_ap_is_refused_and_not_written(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([{"AP": 30.0}, {"AP": 29.9}] * 2 + [{"AP": 30.0}, {"AP": 29.96}])
    monkeypatch.setattr("detdistill.run.exports.measure", lambda *_, **__: (next(values), []))
    data = DataConfig(path="shapes:8", image_size=(64, 96))
    with pytest.raises(UserError, match=r"the file loses 0\.10 AP, and 0\.05 is allowed$"):
        run.export(small_run, tmp_path / "model.onnx", data=data)
    assert list(tmp_path.iterdir()) == []
    assert run.export(small_run, tmp_path / "model.onnx", data=data, force=True).is_file()
    run.export(small_run, tmp_path / "second.onnx", data=data)
    assert json.loads((tmp_path / "second.onnx.json").read_text())["AP"] == {"detector": 30.0, "file": 29.96}


def test_torch_loads_the_file_without_this_package(small: Any, small_run: Path, tmp_path: Path) -> None:
    run.export(small_run, tmp_path / "model.pt2")
    images = torch.randint(0, 256, (2, 3, 96, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    sizes = torch.tensor([[90, 64], [96, 33]])
    np.savez(tmp_path / "inputs.npz", images=images.numpy(), sizes=sizes.numpy())
    command = [sys.executable, "-c", READER, *(str(tmp_path / name) for name in ("model.pt2", "inputs.npz", "out.npz"))]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    from detdistill.types import Batch

    with torch.no_grad():
        own = small.candidates(Batch(images, sizes, sizes, sizes[:, 0], ())).table()
    loaded = np.load(tmp_path / "out.npz")
    for name, tensor in zip(("boxes", "scores", "labels"), own, strict=True):
        np.testing.assert_allclose(loaded[name], tensor.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (
            ["--out", "m.pt2", "--precision", "fp16"],
            ["--precision fp16", "--format torch has fp32", "onnx or openvino"],
        ),
        (["--out", "m.pt2", "--precision", "int8", "--data", "shapes:8"], ["--format torch has fp32"]),
        (["--out", "m.onnx", "--precision", "int8"], ["--precision int8", "give --data"]),
        (
            ["--out", "m.onnx", "--precision", "int8", "--data", "shapes:8", "--data.eval-split", "train"],
            ["calibrated on the train split", "--data.eval-split"],
        ),
        (["--out", "m.onnx", "--opset", "16"], ["16"]),
        (["--out", "m.xml", "--format", "onnx"], ["--format onnx ends in .onnx"]),
    ],
)
def test_wrong_input_is_one_line(
    flags: list[str], parts: list[str], small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", "--model", str(small_run), *flags]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and [part for part in parts if part not in message] == [], message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_missing_extra_is_one_line(
    kind: str, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detdistill.run.exports.find_spec", lambda name: None if name == "onnxruntime" else object())
    out = tmp_path / ("m.onnx" if kind == "onnx" else "m.xml")
    with pytest.raises(
        UserError, match=rf"onnxruntime is missing; install it with `pip install 'detdistill\[{kind}\]'`"
    ):
        run.export(small_run, out)
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_and_files_of_others_are_refused(tmp_path: Path, plain: Any, model: onnx.ModelProto) -> None:
    for suffix in FORMATS:
        damaged = tmp_path / f"damaged{suffix}"
        damaged.write_bytes(b"nothing")
        damaged.with_suffix(".bin").write_bytes(b"")
        with pytest.raises(UserError, match=r"damaged.*can't load it \(.*\); export it again"):
            ExportedDetector(damaged)
    del model.metadata_props[:]
    onnx_file.save(model, tmp_path / "other.onnx")
    torch.export.save(plain.program, tmp_path / "other.pt2")
    for suffix in (".onnx", ".pt2"):
        with pytest.raises(UserError, match="it has no description by detdistill"):
            ExportedDetector(tmp_path / f"other{suffix}")
    (tmp_path / "alone.xml").write_text("<net/>")
    with pytest.raises(UserError, match=r"alone\.bin are not beside it"):
        ExportedDetector(tmp_path / "alone.xml")
