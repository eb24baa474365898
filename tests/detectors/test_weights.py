"""Trained detectors are loaded whole or refused, from files, torchvision and run folders."""

from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel
from torchvision.models import detection
from torchvision.models.detection import fasterrcnn_resnet50_fpn, fcos_resnet50_fpn, retinanet_resnet50_fpn

from detdistill.detectors.build import build
from detdistill.detectors.weights import TORCHVISION, load_strictly, load_teacher
from detdistill.engine.checkpoint import Training, checkpoint_path, save_checkpoint
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.run.folder import ModelCard, RunFolder
from detdistill.run.models import load
from tests.detectors.builders import CLASSES, tiny

SMALL = ModelConfig(strides=(8, 16, 32), channels=32, tower_depth=2)


def test_every_tensor_must_match():
    source = tiny("fcos", seed=1)
    state = {name: value.clone() for name, value in source.state_dict().items()}
    detector = tiny("fcos", seed=2)
    report = load_strictly(detector, state, "weights.pt")
    assert report.complete
    assert report.matched == len(state)
    assert all(torch.equal(value, state[name]) for name, value in detector.state_dict().items())
    first = next(iter(state))
    for change, message in (
        ({first: None}, f"1 missing.*first: '{first}' is missing"),
        ({"extra": torch.zeros(1)}, "1 unexpected.*first: 'extra' is unexpected"),
        ({first: torch.zeros(2)}, f"1 of another shape; first: '{first}' is of another shape"),
    ):
        changed = {name: value for name, value in {**state, **change}.items() if value is not None}
        with pytest.raises(UserError, match=rf"^weights.pt: .*{message}; the weights do not match this architecture"):
            load_strictly(detector, changed, "weights.pt")


@pytest.mark.parametrize("has_host_names", [False, True])
def test_a_state_dict_with_our_names_or_the_hosts_names_is_loaded(tmp_path: Path, has_host_names: bool):
    detector = tiny("retinanet", seed=3)
    file = tmp_path / "trained.safetensors"
    save_file(detector.model.state_dict() if has_host_names else detector.state_dict(), file)
    teacher, report = load_teacher(f"retinanet:mobilenetv2_035={file}", CLASSES, SMALL)
    assert report.complete
    loaded, expected = (part.model.head.classification_head.cls_logits.weight for part in (teacher, detector))
    assert torch.equal(loaded, expected)
    with pytest.raises(UserError, match="of another shape"):
        load_teacher(f"retinanet:mobilenetv2_035={file}", CLASSES, SMALL.model_copy(update={"channels": 64}))


def test_weights_from_frozen_norms_get_the_eps_of_their_training(tmp_path: Path):
    """A state dict without step counters comes from frozen norms. torchvision sets their eps to 0 for these weights."""
    host = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    file = tmp_path / "trained.pt"
    for is_frozen, eps in ((True, 0.0), (False, 1e-5)):
        state = host.state_dict()
        if is_frozen:
            state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
        torch.save(state, file)
        teacher, _ = load_teacher(f"torchvision:retinanet_resnet50_fpn={file}", CLASSES)
        assert {norm.eps for norm in teacher.modules() if isinstance(norm, torch.nn.BatchNorm2d)} == {eps}


def test_a_two_stage_file_without_a_background_column_is_refused(tmp_path: Path):
    host = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=len(CLASSES))
    file = tmp_path / "trained.pt"
    torch.save(host.state_dict(), file)
    message = (
        r"trained.pt: it has 3 class columns \(2 classes and the background\), but the data have 3 classes \(disc, "
    )
    with pytest.raises(UserError, match=message):
        load_teacher(f"torchvision:fasterrcnn_resnet50_fpn={file}", CLASSES)


def test_a_vit_with_several_strides_is_refused():
    message = r"timm:vit_tiny_patch16_224: a ViT has one level, but teacher.model.strides is \(8, 16\)"
    with pytest.raises(UserError, match=message):
        load_teacher("timm:vit_tiny_patch16_224", CLASSES, ModelConfig(strides=(8, 16)))


@pytest.mark.parametrize(("start", "eps"), [("FCOS_ResNet50_FPN_Weights.COCO_V1", 0.0), (None, 1e-5)])
def test_the_eps_of_frozen_norms_follows_the_flags_of_the_training_script(
    tmp_path: Path, start: str | None, eps: float
):
    """torchvision sets it to 0 only in a training that starts from its COCO weights."""
    host = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    state = {name: value for name, value in host.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save({"model": state, "args": Namespace(weights=start)}, tmp_path / "trained.pth")
    teacher, _ = load_teacher(f"torchvision:retinanet_resnet50_fpn={tmp_path / 'trained.pth'}", CLASSES)
    assert {norm.eps for norm in teacher.modules() if isinstance(norm, torch.nn.BatchNorm2d)} == {eps}


@pytest.mark.parametrize(
    "name", ["fcos_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_fpn", "ssdlite320_mobilenet_v3_large"]
)
def test_a_file_of_torchvisions_training_script_is_loaded(tmp_path: Path, name: str):
    torch.manual_seed(0)
    model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=len(CLASSES) + 1)
    average = AveragedModel(model).state_dict()
    file = tmp_path / "model_25.pth"
    checkpoint = {"model": model.state_dict(), "model_ema": average, "optimizer": {}, "epoch": 25}
    torch.save(checkpoint | {"args": Namespace(lr=0.02, output_dir=tmp_path)}, file)
    teacher, report = load_teacher(f"torchvision:{name}={file}", CLASSES)
    assert report.complete
    assert f"; took the moving average (model_ema.module); {file}#model takes the other" in str(report)
    assert teacher.info.classes == CLASSES
    assert all(torch.equal(value, teacher.state_dict()[f"model.{key}"]) for key, value in model.state_dict().items())
    bias = model.state_dict()[TORCHVISION[name].classifier]
    checkpoint["model"] = model.state_dict() | {TORCHVISION[name].classifier: bias.repeat(2)}
    torch.save(checkpoint, file)
    with pytest.raises(UserError, match=r"pth#model: it has 8 class columns \(7 classes and .*, but the data have 3"):
        load_teacher(f"torchvision:{name}={file}#model", CLASSES)


@pytest.mark.parametrize("prefix", ["", "module.", "student.", "_orig_mod.module."])
@pytest.mark.parametrize("host_prefix", ["", "model."])
def test_a_file_of_another_training_loop_is_loaded_whatever_its_prefixes(tmp_path: Path, prefix: str, host_prefix: str):
    detector = tiny("fcos", seed=3)
    state = {name.removeprefix("model."): value for name, value in detector.state_dict().items()}
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": {f"{prefix}{host_prefix}{name}": value for name, value in state.items()}}, file)
    teacher, report = load_teacher(f"fcos:mobilenetv2_035={file}", CLASSES, SMALL)
    assert report.complete
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in detector.state_dict().items())
    assert ("stripped" in report.note) == bool(prefix)


def test_the_checkpoint_of_an_unfinished_run_is_a_teacher(tmp_path: Path):
    """A run folder without model.safetensors still holds the student, and its moving average."""
    student = tiny("gfl", seed=4)
    wrapper = torch.nn.ModuleDict({"student": student, "methods": torch.nn.Linear(2, 2)})
    training = Training(wrapper, torch.optim.SGD(wrapper.parameters(), 0.1), AveragedModel(wrapper))
    save_checkpoint(training, {}, tmp_path)
    teacher, report = load_teacher(f"gfl:mobilenetv2_035={checkpoint_path(tmp_path)}", CLASSES, SMALL)
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in student.state_dict().items())
    assert "took the moving average (average.module.student)" in report.note


@pytest.mark.parametrize("head", ["deformable_detr", "adamixer"])
def test_a_run_that_started_from_loaded_weights_keeps_its_norms_frozen(head: str, tmp_path: Path):
    file = tmp_path / "backbone.safetensors"
    save_file(timm.create_model("mobilenetv2_035", pretrained=False).state_dict(), file)
    for name, weights, is_frozen in (("loaded", str(file), True), ("fresh", "none", False)):
        config = ModelConfig(
            name=f"{head}:mobilenetv2_035", strides=(8, 16, 32), channels=32, decoder_layers=2, backbone_weights=weights
        )
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        folder.save(
            build(config, CLASSES), ModelCard(model=config, classes=CLASSES, category_ids=(1, 2, 3), image_size=64)
        )
        detector = load(folder.path).train()
        norms = [module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert norms
        assert all(norm.training != is_frozen and norm.weight.requires_grad != is_frozen for norm in norms)


def test_the_coco_columns_of_torchvision_are_selected_by_class_name(tmp_path: Path):
    host = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    file = tmp_path / "coco.pt"
    torch.save(host.state_dict(), file)
    teacher, _ = load_teacher(f"torchvision:fcos_resnet50_fpn={file}", ("cat", "dog"))
    assert len(teacher.info.classes) == 80
    columns = dict(zip(teacher.info.classes, teacher.columns.index.tolist(), strict=True))
    assert (columns["person"], columns["stop sign"], columns["toothbrush"]) == (1, 13, 90)  # category ids have gaps
    with pytest.raises(UserError, match="not a state dict of retinanet_resnet50_fpn"):
        load_teacher(f"torchvision:retinanet_resnet50_fpn={file}", CLASSES)


def test_a_file_without_data_has_no_class_names(tmp_path: Path):
    file = tmp_path / "trained.pt"
    torch.save(fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4).state_dict(), file)
    for path in (f"torchvision:fcos_resnet50_fpn={file}", f"fcos:mobilenetv2_035={file}"):
        with pytest.raises(
            UserError, match=f"{file}: .*the names of its classes are not known here; give a run folder"
        ):
            load_teacher(path, (), SMALL)


def test_a_path_that_is_no_teacher_gives_a_message_of_one_line(tmp_path: Path):
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not a pickle")
    for path, message in (
        ("nowhere", "not a run folder"),
        ("torchvision:fcos_resnet50_fpm", "did you mean 'fcos_resnet50_fpn'"),
        (f"fcos:resnet18={broken}", "not a file of plain tensors"),
        (f"fcos:resnet18={tmp_path / 'none.pt'}", "can't read the file"),
    ):
        with pytest.raises(UserError, match=message) as error:
            load_teacher(path, CLASSES, SMALL)
        assert "\n" not in str(error.value)
