"""A module of the user's own as a student and as a teacher of features."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import detdistill as dd
from detdistill.detectors.features import FeatureModel
from detdistill.errors import UserError
from detdistill.methods import METHODS
from detdistill.types import Batch, Need, Targets
from tests.detectors.builders import tiny

UNLABELED = ["pkd", "fitnets", "at", "reviewkd", "cwd", "mgd", "token_alignment"]
LABELED = ["fgd", "fgfi", "defeat"]


class Net(nn.Module):
    """Two maps of strides 4 and 8, in the form that `form` makes of them."""

    def __init__(self, width: int = 4, form: Any = list):
        super().__init__()
        self.form = form
        self.fine = nn.Sequential(nn.Conv2d(3, width, 5, 4, 2), nn.BatchNorm2d(width))
        self.coarse = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width))

    def forward(self, images: Tensor) -> Any:
        fine = self.fine(images)
        return self.form([fine, self.coarse(fine)])


def batch(height: int = 32, width: int = 64) -> Batch:
    return Batch.of(torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)))


def targets() -> Targets:
    return Targets((torch.tensor([[4.0, 4, 28, 30]]), torch.zeros(0, 4)), (torch.tensor([0]), torch.zeros(0).long()))


@pytest.mark.parametrize("form", [list, tuple, lambda maps: {"p2": maps[0], "p3": maps[1]}])
def test_the_maps_of_a_list_tuple_or_dict_become_the_neck(form: Any) -> None:
    model = FeatureModel(Net(form=form), (4, 8)).eval()
    assert model.info.channels == {"neck": (4, 8)}
    assert (model.info.width("neck", 4), model.info.width("neck", 8)) == (4, 8)
    pyramid = model.observe(batch(), need=Need(pyramids=frozenset({"neck"}))).pyramids["neck"]
    assert [tuple(level.shape) for level in pyramid.levels] == [(2, 4, 8, 16), (2, 8, 4, 8)]
    assert torch.equal(pyramid.sizes, torch.tensor([[32, 64]] * 2))


def test_one_tensor_is_one_map() -> None:
    model = FeatureModel(Net(form=lambda maps: maps[0]), [4])
    assert model.info.strides == (4,)
    assert model.info.width() == 4


def test_images_are_normalized_only_if_statistics_are_given() -> None:
    images = batch()
    plain = FeatureModel(nn.Identity(), [1]).observe(images).pyramids["neck"].levels[0]
    torch.testing.assert_close(plain, images.images)
    scaled = FeatureModel(nn.Identity(), [1], mean=(0.5, 0.5, 0.5), std=(2, 2, 2)).observe(images)
    torch.testing.assert_close(scaled.pyramids["neck"].levels[0], (images.images - 0.5) / 2)


def test_the_run_that_finds_the_channels_changes_neither_mode_nor_statistics() -> None:
    net = Net()
    net.coarse.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    FeatureModel(net, (4, 8))
    assert net.fine.training
    assert not net.coarse.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_each_method_serves_it_or_refuses_it_with_a_reason(name: str) -> None:
    student = FeatureModel(Net(4), (4, 8))
    teacher = FeatureModel(Net(6), (4, 8)).eval().requires_grad_(False)
    if name not in UNLABELED + LABELED:
        with pytest.raises(UserError) as refused:
            dd.pair(student, teacher, name)
        assert ";" in str(refused.value)
        assert "\n" not in str(refused.value)
        return
    distillation = dd.pair(student, teacher, {name: {"warmup_steps": 0}})
    teacher_output = teacher.observe(batch(), need=distillation.need)
    if name in LABELED:
        with pytest.raises(ValueError, match=f"assignment: {name}; pass Targets"):
            distillation(batch(), None, teacher_output=teacher_output)
    terms = distillation(batch(), targets() if name in LABELED else None, teacher_output=teacher_output)
    sum(terms.values(), torch.zeros(())).backward()
    assert any(bool(parameter.grad.any()) for parameter in student.parameters() if parameter.grad is not None)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_it_teaches_a_detector_on_the_level_of_equal_stride() -> None:
    student, teacher = tiny("gfl").train(), FeatureModel(Net(6), (4, 8)).eval().requires_grad_(False)
    distillation = dd.pair(student, teacher, "pkd,mgd")
    terms = distillation(batch(64, 64), targets(), teacher_output=teacher.observe(batch(64, 64)))
    assert terms.keys() > {"pkd_features", "mgd_features"}


@pytest.mark.parametrize("name", ["pkt", "crd"])
def test_methods_that_read_all_levels_alike_need_one_width(name: str) -> None:
    same = FeatureModel(Net(form=lambda maps: [maps[0], maps[1][:, :4]]), (4, 8))
    assert dd.pair(same, same, name).methods
    with pytest.raises(UserError, match=r"different widths \(4, 8\)"):
        dd.pair(FeatureModel(Net(), (4, 8)), same, name)


def test_its_own_run_and_losses_become_the_output_of_the_student() -> None:
    net = Net()
    model, images = FeatureModel(net, (4, 8)), batch()
    result = net(images.images)
    loss = result[0].square().mean()
    output = model.output(result, images, {"own": loss})
    assert output.pyramids["neck"].levels[1] is result[1]
    terms = dd.Distillation(model)(images, None, student_output=output)
    assert terms == {"task_own": loss}
    with pytest.raises(ValueError, match="there are no terms"):
        dd.Distillation(model)(images, None)
    with pytest.raises(ValueError, match="`balance` compares a method with the task"):
        dd.pair(model, model, {"pkd": {"balance": 1.0}})(images, None, teacher_output=output)


@pytest.mark.parametrize(
    ("form", "strides", "reason"),
    [
        (list, (8, 4), "the strides are (8, 4); give one per map, ascending"),
        (list, (4, 8, 16), "it returns 2 maps, but there are 3 strides"),
        (list, (4, 16), "map 1 has 4 x 6 cells on images of 32 x 48 pixels, but stride 16 gives 2 x 3"),
        (lambda maps: maps[::-1], (4, 8), "map 0 has 2 x 3 cells on images of 16 x 24 pixels"),
        (lambda maps: [maps[0], maps[1].mean((2, 3))], (4, 8), "map 1 (stride 8) has the shape (1, 8)"),
        (lambda maps: "maps", (4, 8), "expected feature maps, got a str"),
        (lambda maps: {"maps": maps}, (4, 8), "expected feature maps, got a list of list"),
        (lambda maps: maps[0] @ maps[1], (4, 8), "can't process a blank image of 16 x 24 pixels (RuntimeError"),
    ],
)
def test_wrong_maps_are_refused_when_it_is_built(form: Any, strides: tuple[int, ...], reason: str) -> None:
    with pytest.raises(UserError) as refused:
        FeatureModel(Net(form=form), strides)
    assert str(refused.value).startswith("FeatureModel(Net): ")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_declared_channels_are_checked_with_the_first_batch() -> None:
    with pytest.raises(UserError, match="1 channels for 2 strides"):
        FeatureModel(Net(), (4, 8), channels=[4])
    with pytest.raises(UserError, match="the map of stride 8 has 8 channels; 5 were declared"):
        FeatureModel(Net(), (4, 8), channels=[4, 5]).observe(batch())


def test_sides_that_the_stride_does_not_divide_may_be_rounded_either_way() -> None:
    for size, cells in (((30, 61), [(8, 16), (4, 8)]), ((32, 64), [(8, 16), (4, 8)])):
        pyramid = FeatureModel(Net(), (4, 8)).observe(batch(*size)).pyramids["neck"]
        assert [tuple(level.shape[-2:]) for level in pyramid.levels] == cells
    floor = FeatureModel(nn.AvgPool2d(4), [4]).observe(batch(30, 61)).pyramids["neck"]
    assert floor.levels[0].shape[-2:] == (7, 15)


def test_it_has_no_predictions_and_detects_nothing() -> None:
    model = FeatureModel(Net(), (4, 8))
    with pytest.raises(ValueError, match="has no predictions; it has the pyramid 'neck' only"):
        model.observe(batch(), need=Need(predictions=True))
    with pytest.raises(UserError, match="can't detect"):
        model.detect(batch())
