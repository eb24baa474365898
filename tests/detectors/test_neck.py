"""The neck: the second path of the PAFPN by hand and at odd sizes, separable necks, and names of an FPN."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from detdistill.detectors.backbone import build_neck, neck_of
from detdistill.detectors.convolutions import SeparableConv
from detdistill.detectors.neck import BottomUpPath, ExtraLevels, feature_pyramid, plain_convolution
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.types import Need
from tests.detectors.builders import DENSE, make_batch, tiny

FORMS = [(neck, depthwise) for neck in ("fpn", "pafpn") for depthwise in (False, True)]


def config(**options: object) -> ModelConfig:
    values = {"strides": (8, 16, 32), "channels": 32, "backbone_weights": "none"}
    return ModelConfig.model_validate(values | options)


def factor(value: float) -> nn.Conv2d:
    """A convolution that multiplies the center cell of its window by `value`."""
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[..., 1, 1] = value
    return layer


def test_the_second_path_worked_by_hand():
    path = BottomUpPath(1, 3, None, plain_convolution)
    for blocks, values in ((path.down_blocks, (2.0, 3.0)), (path.out_blocks, (10.0, 100.0))):
        for index, value in enumerate(values):
            blocks[index].load_state_dict({"weight": factor(value).weight, "bias": torch.zeros(1)})
    fine = torch.arange(16.0).view(1, 1, 4, 4)
    levels = [fine, torch.full((1, 1, 2, 2), 1.0), torch.full((1, 1, 1, 1), 5.0)]
    outputs, names = path(levels, levels, ["8", "16", "32"])
    assert names == ["8", "16", "32"]
    assert torch.equal(outputs[0], fine)
    # The cells of stride 2 are 0, 2, 8 and 10. Twice these cells plus 1 is the sum of the second level.
    sums = torch.tensor([[1.0, 5.0], [17.0, 21.0]])
    assert torch.equal(outputs[1][0, 0], 10 * sums)
    # The third level reads the sum of the second one, not its output: 5 + 3 * 1, then times 100.
    assert outputs[2].tolist() == [[[[800.0]]]]


def test_a_bias_of_one_level_reaches_all_coarser_outputs():
    torch.manual_seed(0)
    fpn = feature_pyramid([4, 4, 4], 8, extra=2, bottom_up=True).eval()
    maps = {str(stride): torch.rand(1, 4, 64 // stride, 64 // stride) for stride in (8, 16, 32)}
    before = fpn(maps)
    with torch.no_grad():
        fpn.layer_blocks[1][0].bias += 1  # the second level of the FPN
    after = fpn(maps)
    changed = [not torch.allclose(before[name], after[name]) for name in before]
    assert list(before) == ["8", "16", "32", "extra0", "extra1"]
    assert changed == [False, True, True, True, True]


@pytest.mark.parametrize(("neck", "depthwise"), FORMS)
@pytest.mark.parametrize("backbone", ["mobilenetv2_035", "convnext_atto"])
def test_levels_up_to_stride_128_have_half_the_size_rounded_up(neck: str, depthwise: bool, backbone: str):
    strides = (8, 16, 32, 64, 128)
    built = neck_of(config(strides=strides, neck=neck, depthwise=depthwise), backbone).eval()
    with torch.no_grad():
        maps = built(torch.rand(1, 3, 96, 160)).values()
    assert [tuple(level.shape) for level in maps] == [
        (1, 32, 12, 20),
        (1, 32, 6, 10),
        (1, 32, 3, 5),
        (1, 32, 2, 3),
        (1, 32, 1, 2),
    ]


@pytest.mark.parametrize("rows", [(5, 2, 1), (5, 3, 2), (7, 4, 1), (1, 1, 1)])
def test_levels_that_are_no_exact_halves_keep_their_size(rows: tuple[int, ...]):
    fpn = feature_pyramid([4, 6, 8], 8, extra=1, bottom_up=True)
    maps = {str(i): torch.rand(2, w, r, r + 2) for i, (w, r) in enumerate(zip((4, 6, 8), rows, strict=True))}
    sizes = [tuple(level.shape[-2:]) for level in fpn(maps).values()]
    assert sizes[:3] == [(r, r + 2) for r in rows]
    assert sizes[3] == (-(-rows[2] // 2), -(-(rows[2] + 2) // 2))


@pytest.mark.parametrize("head", [*DENSE, "faster_rcnn", "mask_rcnn"])
def test_every_head_gets_the_second_path(head: str):
    plain, second = tiny(head).eval(), tiny(head, neck="pafpn").eval()
    names = second.state_dict().keys() - plain.state_dict().keys()
    assert names and all(".fpn.extra_blocks." in name for name in names)
    assert plain.state_dict().keys() < second.state_dict().keys()
    output = second.observe(make_batch(), need=Need(predictions=True))
    assert output.pyramids["neck"].strides == plain.info.strides
    assert output.stages[-1].boxes.isfinite().all()


def test_an_fpn_is_torchvisions_with_its_names_and_initial_values():
    torch.manual_seed(3)
    extra = ExtraLevels(8, 2)
    expected = FeaturePyramidNetwork([4, 6], 8, extra).state_dict()
    torch.manual_seed(3)
    actual = feature_pyramid([4, 6], 8, extra=2).state_dict()
    assert actual.keys() == expected.keys()
    assert {"layer_blocks.0.0.weight", "extra_blocks.convolutions.1.bias"} <= actual.keys()
    assert all(torch.equal(value, expected[name]) for name, value in actual.items())


@pytest.mark.parametrize("neck", ["fpn", "pafpn"])
def test_every_3x3_convolution_of_a_separable_neck_is_separable(neck: str):
    built = neck_of(config(strides=(8, 16, 32, 64), neck=neck, depthwise=True), "mobilenetv2_035")
    convolutions = [layer for layer in built.fpn.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size[0] > 1]
    assert len(convolutions) == sum(isinstance(layer, SeparableConv) for layer in built.fpn.modules())
    assert len(convolutions) == 4 + (4 if neck == "pafpn" else 0)
    assert all(layer.groups == 32 for layer in convolutions)
    assert not any(isinstance(layer, nn.GroupNorm) for layer in built.fpn.modules())


def test_the_gradient_reaches_every_parameter_of_the_neck():
    neck = build_neck("mobilenetv2_035", (8, 16, 32, 64), 16, "none", bottom_up=True)
    maps = list(neck(torch.rand(2, 3, 64, 64)).values())
    torch.stack([level.square().sum() for level in maps]).sum().backward()
    assert all(has_gradient(parameter) for parameter in neck.fpn.parameters())


def has_gradient(parameter: Tensor) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("detr", {"neck": "pafpn"}, "model.neck: detr has no such option; .*retinanet.*mask_rcnn"),
        ("adamixer", {"neck": "pafpn"}, "model.neck: adamixer has no such option"),
        ("faster_rcnn", {"depthwise": True}, "model.depthwise: faster_rcnn has no such option; .*retinanet.*gfl$"),
    ],
)
def test_a_head_without_such_a_neck_refuses_it(head: str, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        tiny(head, **options)
