"""Frozen norms and stages of a backbone: what a step changes and what it does not, the defaults, refusals."""

import pytest
import torch
from torch import nn

from detdistill.detectors import freezing
from detdistill.detectors.build import rebuild
from detdistill.detectors.freezing import DEFAULTS, check_new, with_freezing
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from tests.detectors.builders import SETS, scene, tiny

SWIN = "swin_tiny_patch4_window7_224"
# The modules below the map of stride 4, and those between the maps of strides 4 and 8.
STAGES = {
    "resnet18": (("conv1.", "bn1.", "layer1."), ("layer2.",)),
    "tf_efficientnet_lite0": (("conv_stem.", "bn1.", "blocks.0.", "blocks.1."), ("blocks.2.",)),
    "mobilenetv3_small_050": (("conv_stem.", "bn1.", "blocks.0."), ("blocks.1.",)),
    "convnext_atto": (("stem_0.", "stem_1.", "stages_0."), ("stages_1.",)),
    SWIN: (("patch_embed.", "layers_0."), ("layers_1.",)),
}


def one_step(detector: nn.Module) -> set[str]:
    """Names in the state dict that one training step changes."""
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=0.01, weight_decay=0.0)
    sum(detector.train().observe(*scene()).losses.values()).backward()
    optimizer.step()
    return {name for name, value in detector.state_dict().items() if not torch.equal(value, before[name])}


CASES = [(backbone, norms, stages) for backbone in STAGES for norms, stages in ((True, 1), (False, 2))]


@pytest.mark.parametrize(("backbone", "norms", "stages"), [*CASES, ("resnet18", True, 0), ("resnet18", False, 0)])
def test_a_step_changes_what_is_not_frozen_and_nothing_else(backbone: str, norms: bool, stages: int):
    detector = tiny("fcos", backbone=backbone, tower_depth=1, freeze_norms=norms, freeze_stages=stages)
    norm_layers = [module for module in detector.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norm_layers:
        nn.init.ones_(norm.weight)  # some are 0 in a new ResNet, and the layers below then get no gradient
    body = "model.backbone.body." + ("body." if backbone == SWIN else "")
    frozen = tuple(body + name for stage in STAGES[backbone][:stages] for name in stage)
    if norms:
        frozen += tuple(f"{name}." for name, module in detector.named_modules() if module in norm_layers)
    constant = ("attn_mask", "relative_position_index", "cell_anchors")
    expected = {name for name in detector.state_dict() if not name.startswith(frozen) and not name.endswith(constant)}
    changed = one_step(detector)
    assert changed & {name for name in detector.state_dict() if name.startswith(frozen)} == set()
    assert expected - changed == set()
    assert any(name.startswith(body) for name in changed)


@pytest.mark.parametrize("head", ["retinanet", "fcos", "atss", "gfl", "faster_rcnn", "mask_rcnn", *SETS])
def test_every_head_freezes_norms_and_stages_of_its_backbone_only(head: str):
    plain = tiny(head, backbone="resnet18")
    detector = tiny(head, backbone="resnet18", freeze_norms=True, freeze_stages=1).train()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), detector.parameters(), strict=True))
    backbone = set(detector.backbone_parameters())
    for name, parameter in detector.named_parameters():
        in_norm = ".bn" in name or ".downsample.1." in name
        in_stage = any(f".{part}." in name for part in ("conv1", "layer1")) and ".layer2." not in name
        in_stage = in_stage and not any(f".layer{number}." in name for number in (3, 4))
        always_trains = parameter not in backbone
        was_frozen = not dict(plain.named_parameters())[name].requires_grad  # the mask branch of Mask R-CNN
        assert parameter.requires_grad == ((always_trains or not (in_norm or in_stage)) and not was_frozen), name
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training == (module.weight not in backbone)


def test_a_frozen_norm_stays_in_eval_mode_until_its_parameters_train_again():
    detector = tiny("gfl", freeze_norms=True)
    norm = detector.neck.body.bn1
    assert not detector.train().neck.body.bn1.training
    assert not detector.eval().train().neck.body.bn1.training
    norm.requires_grad_(True)
    assert detector.train().neck.body.bn1.training


def test_finding_the_stages_changes_no_random_number():
    freezing._stages.cache_clear()
    tiny("gfl", freeze_stages=1)
    after = torch.rand(1)
    tiny("gfl")
    assert torch.equal(after, torch.rand(1))


@pytest.mark.parametrize(
    ("head", "weights", "norms", "stages", "expected"),
    [
        ("gfl", "default", None, None, DEFAULTS["dense"]),
        ("faster_rcnn", "default", None, None, DEFAULTS["two-stage"]),
        ("deformable_detr", "default", None, None, (True, 0)),
        ("adamixer", "runs/teacher", None, None, (True, 0)),
        ("gfl", "none", None, None, (False, 0)),
        ("deformable_detr", "none", None, None, (False, 0)),
        ("gfl", "default", True, 2, (True, 2)),
        ("deformable_detr", "default", False, 0, (False, 0)),
        ("unknown", "default", None, None, (False, 0)),
    ],
)
def test_defaults_depend_on_the_head_and_on_the_weights(
    head: str, weights: str, norms: bool | None, stages: int | None, expected: tuple[bool, int]
):
    config = ModelConfig(name=f"{head}:resnet18", backbone_weights=weights, freeze_norms=norms, freeze_stages=stages)
    filled = with_freezing(config)
    assert (filled.freeze_norms, filled.freeze_stages) == expected


def test_a_rebuilt_detector_freezes_what_its_training_froze():
    sizes = {"strides": (8, 16, 32), "channels": 32, "tower_depth": 1, "queries": 9}
    for head, weights, frozen in (
        ("gfl", "default", False),
        ("adamixer", "default", True),
        ("adamixer", "none", False),
    ):
        config = ModelConfig(name=f"{head}:mobilenetv2_035", backbone_weights=weights, **sizes)
        detector = rebuild(config, ("disc",))
        assert all(p.requires_grad for p in detector.backbone_parameters()) != frozen
    config = ModelConfig(name="gfl:mobilenetv2_035", backbone_weights="default", freeze_stages=1, **sizes)
    assert not rebuild(config, ("disc",)).neck.body.conv_stem.weight.requires_grad


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("gfl", {"backbone": "resnet18", "strides": (8, 16), "freeze_stages": 4}, "'resnet18' .* has 3 stages"),
        ("detr", {"backbone": "vit_tiny_patch16_224", "strides": (16,), "freeze_stages": 2}, "has 1 stage that"),
        ("detr", {"backbone": "native", "freeze_stages": 1}, "'native' is not one of timm"),
    ],
)
def test_stages_that_the_backbone_does_not_have_are_refused(head: str, options: dict[str, object], message: str):
    with pytest.raises(UserError, match=rf"model\.freeze_stages {options['freeze_stages']}: .*{message}") as caught:
        tiny(head, **options)
    assert "\n" not in str(caught.value)


def test_the_stage_of_a_vision_transformer_is_its_patch_embedding():
    detector = tiny("detr", backbone="vit_tiny_patch16_224", strides=(16,), freeze_stages=1)
    frozen = {
        name.partition("model.model.backbone.model.body.model.")[2].partition(".")[0]
        for name, parameter in detector.named_parameters()
        if not parameter.requires_grad
    }
    assert frozen == {"cls_token", "pos_embed", "patch_embed"}


def test_a_new_detector_does_not_freeze_random_weights():
    for field, value in (("freeze_norms", True), ("freeze_stages", 1)):
        config = ModelConfig(name="gfl:resnet18", backbone_weights="none", **{field: value})
        with pytest.raises(UserError, match=f"model.{field} {value}: the backbone starts from random weights"):
            check_new(config)
    check_new(ModelConfig(name="gfl:resnet18", backbone_weights="none", freeze_norms=False, freeze_stages=0))
    check_new(ModelConfig(name="gfl:resnet18", freeze_norms=True, freeze_stages=4))
