"""Facts about backbones equal those of the real models."""

import pytest
import timm
import torch

from detdistill.detectors.statistics import IMAGENET, PixelStatistics
from detdistill.errors import UserError
from detdistill.evaluation.speed import count_operations
from detdistill.run.backbones import describe, matching, normalization


def test_parameters_and_operations_equal_those_of_the_real_model() -> None:
    facts = describe("mobilenetv2_035", (70, 96))
    model = timm.create_model("mobilenetv2_035", features_only=True, pretrained=False).eval()
    assert facts.parameters == sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad():
        assert facts.operations == count_operations(lambda: model(torch.zeros(1, 3, 96, 96)))  # padded to 96 x 96
    assert facts.strides == (2, 4, 8, 16, 32)
    assert facts.statistics == IMAGENET


def test_padding_and_the_simple_pyramid_count() -> None:
    small, padded = describe("maxvit_pico_rw_256", (256, 256)), describe("maxvit_pico_rw_256", (32, 64))
    assert small.operations == padded.operations
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)
    facts = describe("vit_tiny_patch16_224", (64, 64))
    width, norms = 192, 2 * (96 + 192 + 192)
    up = width * 96 * 4 + 96  # one transposed convolution of 2 x 2, to stride 8
    body = sum(parameter.numel() for parameter in vit.parameters()) - 2 * width  # without the last norm
    assert facts.parameters == body + up + norms


def test_a_model_that_cannot_serve_has_the_reason() -> None:
    facts = describe("efficientformerv2_s0", (64, 64))
    assert (facts.parameters, facts.operations, facts.strides) == (None, None, ())
    assert facts.remark == "can't serve: accepts images of one size only"


def test_names_match_by_wildcards_or_contain_the_pattern() -> None:
    assert matching("resnet18") == ["resnet18"]
    assert matching("resnet18.a1_in1k") == ["resnet18.a1_in1k"]
    assert matching("mobilenetv4_conv_small_0?0") == ["mobilenetv4_conv_small_050"]
    assert "mobilenetv4_conv_small" in matching("v4_conv")
    with pytest.raises(UserError, match=r"list backbones resnt18\*: no timm model matches; did you mean 'resnet18'"):
        matching("resnt18*")


def test_normalization_in_words() -> None:
    assert normalization(IMAGENET) == "imagenet"
    assert normalization(describe("tf_efficientnet_lite0", (32, 32)).statistics) == "0.5"
    assert normalization(describe("mobilevit_xxs", (32, 32)).statistics) == "0..1"
    assert normalization(PixelStatistics((0.1, 0.2, 0.3), (0.25, 0.25, 0.3))) == "0.1,0.2,0.3 / 0.25,0.25,0.3"
