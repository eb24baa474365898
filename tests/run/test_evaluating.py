"""The evaluation of a run folder, a state dict and a detector."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import detdistill as dd
from detdistill.data import open_data
from detdistill.errors import UserError
from detdistill.recipe import DataConfig
from detdistill.run.folder import RunFolder
from tests.cli.commands import ARCHITECTURE, DATA, detdistill

from .recipes import MODEL, read_json, small_recipe
from .test_folder import ACCURACY


def test_evaluate_writes_files_only_into_out(
    teacher_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    command = f"evaluate --model {teacher_run} --data shapes:8 --device cpu"
    assert detdistill(command) == 0
    printed = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert all(text in printed for text in ("AP50", "AR100", "ladder", "test split", "GFLOPs"))
    assert detdistill(f"{command} --split val --out results") == 0
    assert "val split" in capsys.readouterr().out
    assert read_json(tmp_path / "results/metrics.json").keys() >= ACCURACY
    assert (tmp_path / "results/predictions.json").exists()


def test_the_saved_weights_have_the_metrics_of_the_run(teacher_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    assert detdistill(f"evaluate --model {teacher_run} --data shapes:8 --device cpu --out {out}") == 0
    run_metrics, metrics = read_json(teacher_run / "metrics.json"), read_json(out / "metrics.json")
    names = ACCURACY | {"params", "flops"}
    assert {name: metrics[name] for name in names} == {name: run_metrics[name] for name in names}


def test_a_model_is_not_evaluated_on_other_classes(run_with_other_class: Path, teacher_run: Path) -> None:
    with pytest.raises(UserError, match="ring"):
        dd.evaluate(str(run_with_other_class), "shapes:8")
    metrics = dd.evaluate(dd.load(teacher_run), small_recipe().data)
    assert metrics["AP"] == RunFolder(teacher_run).metrics()["AP"]


def test_a_state_dict_is_evaluated_with_the_architecture_of_the_flags(
    teacher_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.save(dd.load(teacher_run).state_dict(), tmp_path / "weights.pt")
    command = f"evaluate --model {MODEL}={tmp_path}/weights.pt {DATA}"
    assert detdistill(f"{command} {ARCHITECTURE} --out {tmp_path}/results") == 0
    metrics = read_json(tmp_path / "results/metrics.json")
    assert metrics["per_class"] == read_json(teacher_run / "metrics.json")["per_class"]
    assert detdistill(command) == 2
    assert "--model.channels" in capsys.readouterr().err
    assert detdistill(f"evaluate --model {teacher_run} --data shapes:8 --model.channels 64") == 2
    assert "leave out model.channels" in capsys.readouterr().err


def test_predictions_have_the_ids_of_a_file_whose_ids_are_texts(teacher_run: Path, tmp_path: Path) -> None:
    data = open_data(DataConfig(path="shapes:8"))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, record in enumerate(data.split("test").records):
        record.image().save(tmp_path / f"{index}.png")
        images.append({"id": f"image-{index}", "file_name": f"{index}.png"})
        for (left, top, right, bottom), label in zip(record.corners.tolist(), record.labels.tolist(), strict=True):
            box = [left, top, right - left, bottom - top]
            annotations.append({"image_id": f"image-{index}", "category_id": f"c{label}", "bbox": box})
    categories = [{"id": f"c{index}", "name": name} for index, name in enumerate(data.classes)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "test.json").write_text(json.dumps(content))
    own, texts = tmp_path / "own", tmp_path / "texts"
    assert detdistill(f"evaluate --model {teacher_run} --data shapes:8 --device cpu --out {own}") == 0
    assert detdistill(f"evaluate --model {teacher_run} --data {tmp_path}/test.json --device cpu --out {texts}") == 0
    assert read_json(texts / "metrics.json")["per_class"] == read_json(own / "metrics.json")["per_class"]
    results = read_json(texts / "predictions.json")
    assert {result["image_id"] for result in results} <= {image["id"] for image in images}
    assert {result["category_id"] for result in results} <= {category["id"] for category in categories}
    assert len(results) == len(read_json(own / "predictions.json")) > 0
    names = {category["id"]: category["name"] for category in categories}
    assert all(result["category_name"] == names[result["category_id"]] for result in results)
