"""The pages for code of your own are true: the loops run, agree with our engine, resume, and leave out the teacher."""

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

import detdistill as dd
from detdistill.recipe import TrainConfig
from detdistill.types import Batch, Targets
from tests.test_docs import blocks, own_files, registries, run, teacher

__all__ = ["registries", "teacher"]

Pages = dict[str, Any]
KINDS = {"task", "pkd", "crosskd"}


@pytest.fixture(scope="module")
def page(teacher: Path) -> Iterator[Pages]:
    """The names that docs/python.md leaves, in a folder of its own. The working directory is this folder."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(teacher.parent.parent)
        yield run("docs/python.md")


class Listed:
    """Batches in a list, as a loader for `dd.fit`."""

    def __init__(self, batches: list[tuple[Batch, Targets]]):
        self.batches, self.steps = batches, len(batches)

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Batch, Targets]]:
        return iter(self.batches[start:])


def fresh(page: Pages, methods: str = "pkd,crosskd") -> dd.Distillation:
    """The same student and methods in every call."""
    torch.manual_seed(0)
    student = dd.build("gfl:mobilenetv2_035", page["teacher"].info.classes, **page["small"])
    return dd.pair(student, page["teacher"], methods)


def in_order(page: Pages) -> DataLoader:
    """The batches of the page, always in the same order."""
    return DataLoader(page["dataset"], batch_size=4, collate_fn=dd.collate_samples)


def test_the_loops_of_the_page_leave_a_student(page: Pages) -> None:
    assert {name.split("_")[0] for name in page["metrics"]} >= {"AP", "AP50"}
    for name in ("own", "from_lightning", "from_trainer"):
        dd.load(f"runs/{name}")
    assert len(page["detections"]) == 2


def test_no_checkpoint_holds_the_teacher(page: Pages) -> None:
    expected = fresh(page).state_dict().keys()
    state = torch.load("runs/lightning/last.ckpt", weights_only=True)["state_dict"]
    assert state.keys() == {f"distillation.{name}" for name in expected}
    assert not any(
        parameter is own for own in page["teacher"].parameters() for parameter in page["module"].parameters()
    )
    (folder,) = Path("runs/trainer").glob("checkpoint-*")
    assert load_file(folder / "model.safetensors").keys() == expected


def engine_terms(page: Pages, folder: Path) -> dict[str, float]:
    """The terms of the first step of `dd.fit` on the batches of the page."""
    config = TrainConfig(epochs=1, lr=1e-3, device="cpu")
    dd.fit(fresh(page), Listed(list(in_order(page))), teacher=page["teacher"], config=config, out=folder)
    row = json.loads((folder / "log.jsonl").read_text().splitlines()[0])
    return {name: value for name, value in row.items() if name.split("_")[0] in KINDS}


def test_every_loop_has_the_terms_of_our_engine(page: Pages, tmp_path: Path) -> None:
    expected = engine_terms(page, tmp_path)
    assert {name.split("_")[0] for name in expected} == KINDS
    batch, targets = next(iter(in_order(page)))
    distillation = fresh(page).train()
    with torch.no_grad():
        teacher_output = page["teacher"].observe(batch, need=distillation.need)
    plain = distillation(batch, targets, teacher_output=teacher_output)

    module = page["Distilled"](fresh(page), page["teacher"])
    lightning = page["lightning"].Trainer(max_steps=1, barebones=True)
    logged: dict[str, torch.Tensor] = {}
    module.log_dict = lambda terms, **_: logged.update(terms)
    lightning.fit(module, in_order(page))

    trainer = page["DistillationTrainer"](fresh(page), page["arguments"], teacher=page["teacher"])
    model = trainer.model.train()
    total, terms = trainer.compute_loss(model, {"batch": batch, "targets": targets}, return_outputs=True)

    for found in (plain, logged, terms):
        assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-5)
    assert total.item() == pytest.approx(sum(expected.values()), rel=1e-5)


def test_lightning_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(page: Pages, tmp_path: Path) -> None:
    def trained(epochs: int, start: Path | None = None) -> tuple[Any, dict[str, torch.Tensor]]:
        module = page["Distilled"](fresh(page), page["teacher"])
        options = {"enable_checkpointing": False, "default_root_dir": tmp_path, **page["options"]}
        trainer = page["lightning"].Trainer(max_epochs=epochs, **options)
        trainer.fit(module, in_order(page), ckpt_path=start, weights_only=True)
        assert trainer.global_step == 2 * epochs
        return trainer, module.state_dict()

    trained(1)[0].save_checkpoint(tmp_path / "one.ckpt")
    _, whole = trained(2)
    for name, value in trained(2, tmp_path / "one.ckpt")[1].items():
        torch.testing.assert_close(value, whole[name], msg=name)


def test_trainer_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(page: Pages, tmp_path: Path) -> None:
    def trained(folder: str, epochs: int, resume: bool) -> dict[str, torch.Tensor]:
        options = {"num_train_epochs": epochs, "save_strategy": "epoch", "lr_scheduler_type": "constant"}
        kept = {"per_device_train_batch_size": 4, "learning_rate": 1e-3, "remove_unused_columns": False}
        arguments = page["TrainingArguments"](output_dir=str(tmp_path / folder), report_to="none", **options, **kept)
        distillation = fresh(page)
        trainer = page["DistillationTrainer"](
            distillation,
            arguments,
            data_collator=page["collate"],
            train_dataset=page["dataset"],
            teacher=page["teacher"],
        )
        trainer.train(resume_from_checkpoint=resume)
        assert trainer.state.global_step == 2 * epochs
        return distillation.state_dict()

    whole = trained("whole", 2, resume=False)
    trained("parts", 1, resume=False)
    for name, value in trained("parts", 2, resume=True).items():
        torch.testing.assert_close(value, whole[name], msg=name)


def test_the_terms_of_the_network_for_segmentation_have_the_users_own_loss(page: Pages) -> None:
    segmenter = page["narrow"]
    batch = Batch.of(torch.rand(2, 3, 32, 64))
    result = segmenter.module(batch.images)
    own = {"pixels": result["logits"].square().mean()}
    distillation = dd.pair(segmenter, page["wide"], {"pkd": {"balance": 0.5}})
    terms = distillation(
        batch,
        None,
        teacher_output=page["wide"].observe(batch, need=distillation.need),
        student_output=segmenter.output(result, batch, losses=own),
    )
    assert terms.keys() == {"task_pixels", "pkd_features"}
    assert terms["task_pixels"] is own["pixels"]
    assert distillation.factors()["balance_pkd"] != 1


def test_the_page_of_the_detector_runs(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(teacher.parent.parent)
    own_files(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("tiny_yolo", None)  # another test imported it, and its registration was undone
    try:
        torch.manual_seed(0)  # for the weights of the student
        _, block = blocks("docs/own_detector.md", "python")
        names: Pages = {}
        exec(compile(block.replace("runs/shapes", "runs/teacher"), "own_detector.md", "exec"), names)
    finally:
        sys.modules.pop("tiny_yolo", None)
    rows = dd.testing.learn(names["student"], None, [], steps=10, lr=1e-3)
    assert rows[-1]["total"] < rows[0]["total"]
    source = (tmp_path / "tiny_yolo.py").read_text()
    assert len(source.splitlines()) <= 120
