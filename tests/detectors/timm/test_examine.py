"""What timm models need, found out without weights."""

import pytest
import timm
import torch
from torch import nn

from detdistill.detectors.timm import examine as module
from detdistill.detectors.timm.examine import UnfitError, count_parameters, examine


@pytest.mark.parametrize(
    ("name", "strides", "remark"),
    [
        ("resnet18", (2, 4, 8, 16, 32), ""),
        ("vgg11", (1, 2, 4, 8, 16, 32), ""),
        ("convnext_atto", (4, 8, 16, 32), ""),
        ("shvit_s1", (16, 32, 64), ""),
        ("mobilevitv2_050", (2, 4, 8, 16, 32), "images padded to multiples of 64"),
        ("maxvit_pico_rw_256", (2, 4, 8, 16, 32), "images padded to multiples of 256"),
        ("mambaout_femto", (4, 8, 16, 32), "axes of its maps permuted"),
        ("vit_tiny_patch16_224", (4, 8, 16, 32), "simple pyramid on its last map"),
        ("xcit_nano_12_p8_224", (4, 8, 16, 32), "simple pyramid on its last map"),
        ("vit_tiny_r_s16_p8_224", (8, 16, 32), "simple pyramid on its last map"),
        ("eva02_tiny_patch14_224", (4, 8, 16, 32), "simple pyramid on its last map, images resized by 14/16"),
    ],
)
def test_needs_are_found_by_running_a_model(name: str, strides: tuple[int, ...], remark: str) -> None:
    found = examine(name)
    assert (found.strides, found.remark()) == (strides, remark)


def test_a_map_without_the_size_that_its_stride_says_is_left_out() -> None:
    assert examine("nasnetalarge").strides == (4, 8, 16, 32)  # its map of stride 2 lacks a row and a column


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("efficientformerv2_s0", "accepts images of one size only"),
        ("visformer_tiny", "accepts images of one size only"),
        ("mvitv2_tiny", "accepts images of up to 224 pixels only"),
        ("inception_v3", "the sizes of its maps are no fractions of an image"),
        ("crossvit_9_240", "accepts images of one size only"),  # its maps have strides 12 and 17
    ],
)
def test_a_model_that_cannot_serve_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(UnfitError, match=f"^{reason}$"):
        examine(name)


def test_the_deepest_map_of_a_stride_is_used() -> None:
    blocks = len(timm.create_model("vit_tiny_patch16_224", pretrained=False).blocks)
    assert dict(examine("vit_tiny_patch16_224").maps) == {16: blocks - 1}


def test_parameters_are_those_of_the_model_below_its_deepest_map() -> None:
    model = timm.create_model("mobilenetv2_035", pretrained=False, features_only=True)
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters("mobilenetv2_035") == examine("mobilenetv2_035").parameters == expected


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_examining_changes_no_random_number(device: str) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert module._examine("vit_tiny_patch16_224", device).device == device
    assert torch.equal(torch.rand(1), expected)


def test_a_model_of_your_own_whose_code_needs_numbers_is_examined_on_the_cpu() -> None:
    rates = []

    def own_backbone(pretrained: bool = False, **options: object) -> nn.Module:
        rates.append([rate.item() for rate in torch.linspace(0, 0.1, 4)])  # impossible on the meta device
        return timm.create_model("test_resnet", pretrained=pretrained, **options)

    own_backbone.__module__ = "timm.models.resnet"
    timm.models.register_model(own_backbone)
    with pytest.raises(UnfitError, match="timm can't extract feature maps from it"):
        examine("own_backbone", quick=True)
    found = examine("own_backbone")
    assert (found.device, found.strides) == ("cpu", (2, 4, 8, 16, 32))
    with found.dry():
        assert len(found.create((8, 16))(torch.zeros(1, 3, 64, 64))) == 2
