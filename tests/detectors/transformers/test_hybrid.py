"""Tests that RT-DETR, RT-DETRv2 and D-FINE share."""

from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import RTDetrImageProcessor

from detdistill.detectors.queries import matching
from detdistill.detectors.transformers import criterion
from detdistill.detectors.transformers.d_fine import DFINE
from detdistill.detectors.transformers.rt_detr import RTDETR
from detdistill.errors import UserError
from detdistill.geometry import to_relative
from detdistill.recipe import ModelConfig
from detdistill.testing import check_detector
from detdistill.types import Need, QuerySet
from tests.detectors.builders import make_batch, make_targets, tiny
from tests.detectors.transformers.hybrid import (
    BUILDERS,
    CLASSES,
    CLOSE,
    NAMES,
    build,
    frame_of,
    host_forward,
    observe,
    perturb,
)

every_kind = pytest.mark.parametrize("kind", BUILDERS)


@every_kind
def test_it_passes_check_detector(kind: str):
    detector = perturb(build(kind))
    check_detector(detector)
    info = detector.info
    assert (info.kind, info.strides, info.queries.width, info.queries.learned) == (kind, (8, 16, 32), 32, False)
    assert info.queries.parts == {"content", "reference"}


@every_kind
@pytest.mark.parametrize("size", [(64, 96), (96, 128)])
def test_the_eval_forward_equals_the_hosts(kind: str, size: tuple[int, int]):
    detector, batch = perturb(build(kind)).eval(), make_batch(*size)
    with torch.no_grad():
        expected, output = host_forward(detector, batch), observe(detector, batch)
    last = output.stages[-1]
    torch.testing.assert_close(last.logits, expected.logits, **CLOSE)
    torch.testing.assert_close(to_relative(last.boxes, frame_of(batch)), expected.pred_boxes, **CLOSE)
    torch.testing.assert_close(last.embeddings, expected.last_hidden_state, **CLOSE)
    host_levels = expected.encoder_last_hidden_state
    for level, host_level in zip(output.pyramids["neck"].levels, host_levels, strict=True):
        torch.testing.assert_close(level, host_level, **CLOSE)
        assert level.shape[1] == 32
    projections = detector.model.model.decoder_input_proj
    projected = [projection(level) for projection, level in zip(projections, host_levels, strict=True)]
    for level, host_level in zip(output.pyramids["memory"].levels, projected, strict=True):
        torch.testing.assert_close(level, host_level, **CLOSE)
    torch.testing.assert_close(output.queries.own.reference, expected.init_reference_points.sigmoid(), **CLOSE)
    assert len(output.stages) == 3


@every_kind
def test_detections_equal_the_published_post_processing(kind: str):
    detector, batch = perturb(build(kind)).eval(), make_batch(96, 128)
    with torch.no_grad():
        raw = host_forward(detector, batch)
    published = RTDetrImageProcessor().post_process_object_detection(raw, threshold=0.0, target_sizes=frame_of(batch))
    detector.detections = 12  # the host returns as many as there are queries
    for detections, host, (height, width) in zip(detector.detect(batch), published, batch.sizes.tolist(), strict=True):
        clipped = torch.stack([host["boxes"][:, i].clamp(0, (width, height)[i % 2]) for i in range(4)], 1)
        torch.testing.assert_close(detections.scores, host["scores"], **CLOSE)
        torch.testing.assert_close(detections.boxes, clipped, rtol=0, atol=1e-2)
        assert torch.equal(detections.labels, host["labels"])


@every_kind
def test_stages_do_not_depend_on_denoising_queries(kind: str):
    """In training, denoising queries come before the own queries. Stages do not contain them."""
    detector, batch, targets = perturb(build(kind)), make_batch(), make_targets()
    plain = perturb(build(kind, num_denoising=0))
    plain.load_state_dict(detector.state_dict(), strict=False)
    with_noise = observe(detector.train(), batch, targets)
    without_noise = observe(plain.train(), batch, targets)
    for stage, plain_stage in zip(with_noise.stages, without_noise.stages, strict=True):
        assert stage.logits.shape == (2, 12, 3)
        assert stage.assignment.matched.shape == (2, 12)
        torch.testing.assert_close(stage.logits, plain_stage.logits, **CLOSE)
        torch.testing.assert_close(stage.boxes, plain_stage.boxes, rtol=0, atol=1e-2)
    assert any("denoising" in name for name in with_noise.losses)
    assert not any("denoising" in name for name in without_noise.losses)
    shared = {name for name in with_noise.losses if "denoising" not in name}
    for name in shared:
        torch.testing.assert_close(with_noise.losses[name], without_noise.losses[name], rtol=1e-3, atol=1e-4)
    assert shared == set(without_noise.losses)
    for optional_targets in (None, targets):
        output = observe(detector.eval(), batch, optional_targets)
        assert [stage.logits.shape[1] for stage in output.stages] == [12] * 3
        assert not any("denoising" in name for name in output.losses)
    assert [stage.logits.shape[1] for stage in observe(detector.train(), batch).stages] == [12] * 3


@every_kind
def test_redecoding_the_detectors_own_queries_gives_the_same_stages(kind: str):
    output = observe(perturb(build(kind)).eval(), make_batch(96, 128))
    for first, second in zip(output.stages, output.queries.redecode(output.queries.own), strict=True):
        for name in ("logits", "boxes", "edges", "embeddings"):
            assert (getattr(first, name) is None) == (name == "edges" and kind != "d_fine")
            if getattr(first, name) is not None:
                torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=1e-4)


@every_kind
def test_gradients_of_a_teachers_queries_reach_the_student_only(kind: str):
    student, teacher, batch = perturb(build(kind, strides=(16, 32))), build(kind, queries=20), make_batch()
    with torch.no_grad():
        teacher_queries = observe(teacher.eval(), batch, need=Need(queries=True)).queries.own
    output = observe(student, batch, need=Need(queries=True))
    assert output.stages == ()  # its own queries were not decoded
    content = teacher_queries.content.clone().requires_grad_()
    stages = output.queries.redecode(replace(teacher_queries, content=content))
    assert [tuple(stage.boxes.shape) for stage in stages] == [(2, 20, 4)] * 3
    weights = torch.randn(3, 2, 20, 32)  # without weights the sum of normed states is constant
    pairs = zip(stages, weights, strict=True)
    sum((stage.embeddings * weight).sum() + stage.boxes.sum() for stage, weight in pairs).backward()
    assert content.grad.abs().amax(-1).gt(0).all()
    for part in (student.model.model.backbone, student.model.model.encoder, student.model.model.decoder):
        assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in part.parameters())
    assert all(
        parameter.grad is None
        for parameter in (*teacher.parameters(), *student.model.model.enc_score_head.parameters())
    )


@every_kind
def test_queries_that_do_not_fit_are_refused(kind: str):
    queries = observe(build(kind).eval(), make_batch(), need=Need(queries=True)).queries
    own = queries.own
    for query_set in (
        QuerySet(content=own.content),
        QuerySet(reference=own.reference),
        replace(own, content=own.content[..., :16]),
        replace(own, reference=own.reference[..., :2]),
    ):
        with pytest.raises(ValueError, match="a content 32 wide and a reference box each"):
            queries.redecode(query_set)


@every_kind
def test_sampled_queries_are_seeded_and_inside_the_images(kind: str):
    queries = observe(build(kind).eval(), make_batch(), need=Need(queries=True)).queries
    first, same, different = [queries.sample(400, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(first.content, same.content) and torch.equal(first.reference, same.reference)
    assert not torch.equal(first.content, different.content)
    own = queries.own.content
    assert float(first.content.std()) == pytest.approx(float(own.std()), abs=0.1)  # the scale of its own queries
    assert first.reference[0].amax().item() > 0.97 and first.reference[1, :, 0].amax().item() < 64 / 96
    assert torch.equal(first.content[0], first.content[1])


@every_kind
def test_a_few_steps_reach_every_parameter_and_lower_the_loss(kind: str):
    detector, batch, targets = build(kind).train(), make_batch(), make_targets()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    history = []
    for _ in range(14):
        loss = sum(observe(detector, batch, targets).losses.values())
        optimizer.zero_grad()
        loss.backward()
        assert [name for name, value in detector.named_parameters() if value.grad is None and value.requires_grad] == []
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.93 * history[0]


@every_kind
def test_all_stages_are_matched_in_one_call(kind: str, monkeypatch: pytest.MonkeyPatch):
    calls, solve = [], matching.pair_all
    monkeypatch.setattr(matching, "pair_all", lambda costs, counts: calls.append(len(costs)) or solve(costs, counts))
    output = observe(perturb(build(kind)).train(), make_batch(), make_targets())
    assert calls == [2 * (5 if kind == "d_fine" else 4)]  # 2 images x (stages, encoder, initial boxes of D-FINE)
    for stage in output.stages:
        matched = stage.assignment.matched
        assert sorted(matched[0][matched[0] >= 0].tolist()) == [0, 1]
        assert sorted(matched[1][matched[1] >= 0].tolist()) == [0]
        assert float(stage.assignment.num_positives) == 3
    moved = output.stages[-1].boxes.detach().clone()
    moved[0, 9], moved[1, 4] = make_targets().boxes[0][1], make_targets().boxes[1][0]
    matched = output.queries.match([replace(output.stages[-1], boxes=moved)], make_targets())[0].matched
    assert int(matched[0, 9]) == 1 and int(matched[1, 4]) == 0  # a perfect box is matched


@every_kind
def test_the_losses_equal_the_criterion_of_the_own_stages(kind: str):
    output = observe(perturb(build(kind)).eval(), make_batch(), make_targets())
    terms = output.queries.criterion(output.stages, make_targets())
    for name in NAMES:
        torch.testing.assert_close(output.losses[name], terms[name], **CLOSE)
    rolled = []
    for stage in output.stages:
        assignment = replace(stage.assignment, matched=stage.assignment.matched.roll(1, 1))
        rolled.append(replace(stage, assignment=assignment))
    # The criterion uses the assignment of the stage.
    assert (output.queries.criterion(rolled, make_targets())["box"] - terms["box"]).abs() > 1e-3


@every_kind
def test_the_normalizer_is_averaged_over_processes(kind: str, monkeypatch: pytest.MonkeyPatch):
    detector = perturb(build(kind)).train()
    one_process = observe(detector, make_batch(), make_targets()).losses
    for module in (criterion, matching):
        # As if a second process had three times the objects.
        monkeypatch.setattr(module, "mean_over_processes", lambda count: 2 * count)
    two_processes = observe(detector, make_batch(), make_targets()).losses
    for name, value in one_process.items():
        # ddf is a mean over queries.
        torch.testing.assert_close(two_processes[name], value / (1 if name.startswith("ddf") else 2), **CLOSE)


@every_kind
def test_images_without_objects_give_the_hosts_losses_and_finite_gradients(kind: str):
    detector, targets = perturb(build(kind)).train(), make_targets(empty=True)
    losses = observe(detector, make_batch(), targets).losses
    assert not any("denoising" in name for name in losses)
    assert losses["box"].item() == 0 and losses["classification"].item() > 0
    torch.testing.assert_close(sum(losses.values()), host_forward(detector, make_batch(), targets).loss, **CLOSE)
    sum(losses.values()).backward()
    assert all(value.grad is None or value.grad.isfinite().all() for value in detector.parameters())


@every_kind
def test_predictions_that_are_not_finite_give_nan_losses(kind: str):
    detector = build(kind)
    with torch.no_grad():
        detector.model.model.decoder.class_embed[2].bias[1] = float("inf")
    losses = observe(detector, make_batch(), make_targets()).losses
    assert all(losses[name].isnan() for name in NAMES)


@every_kind
@pytest.mark.parametrize("training", [False, True])
def test_small_images_have_fewer_queries(kind: str, training: bool):
    """64 x 96 pixels at strides 16 and 32 give 24 + 6 tokens."""
    output = observe(build(kind, strides=(16, 32), queries=300).train(training), make_batch(), make_targets())
    assert output.stages[-1].logits.shape[1] == 30
    assert all(value.isfinite() for value in output.losses.values())


@every_kind
def test_levels_have_the_strides_of_the_config(kind: str):
    for strides in ((32,), (4, 8, 16), (4, 8, 16, 32)):
        detector, batch = build(kind, strides=strides, queries=4).eval(), make_batch(64, 128)
        output = observe(detector, batch)
        for name in ("neck", "memory"):
            assert [level.shape[-1] for level in output.pyramids[name].levels] == [128 // stride for stride in strides]
        torch.testing.assert_close(output.stages[-1].logits, host_forward(detector, batch).logits, **CLOSE)


@every_kind
@pytest.mark.parametrize(
    ("need", "runs"),
    [
        (Need(), ""),
        (Need(pyramids=frozenset({"neck"})), ""),
        (Need(pyramids=frozenset({"memory"})), "p"),
        (Need(queries=True), "p"),
        (Need(predictions=True), "pddd"),
    ],
)
def test_observe_stops_when_the_need_is_met(kind: str, need: Need, runs: str, monkeypatch: pytest.MonkeyPatch):
    detector, ran = build(kind).eval(), []
    for letter, part in (
        ("p", detector.model.model.enc_bbox_head),
        *(("d", layer) for layer in detector.model.model.decoder.layers),
    ):
        forward = part.forward
        monkeypatch.setattr(
            part, "forward", lambda *args, f=forward, c=letter, **kwargs: ran.append(c) or f(*args, **kwargs)
        )
    output = observe(detector, make_batch(), need=need)
    assert "".join(ran) == runs  # the encoder's heads run at most once
    assert set(output.pyramids) == ({"neck", "memory"} if runs else {"neck"})
    assert bool(output.stages) == need.predictions
    assert (output.queries is not None) == need.queries


@every_kind
def test_initial_weights_are_the_published_ones(kind: str):
    detector = build(kind).eval()
    output, host = observe(detector, make_batch()), detector.model.model
    assert output.stages[-1].scores().mean().item() == pytest.approx(0.01, abs=0.01)
    for stage in output.stages:  # boxes equal their references
        boxes = to_relative(stage.boxes, frame_of(make_batch()))
        torch.testing.assert_close(boxes, output.queries.own.reference, rtol=0, atol=1e-5)
    norms = [
        module
        for name, module in host.named_modules()
        if isinstance(module, nn.BatchNorm2d) and not name.startswith("backbone")
    ]
    assert norms and all((norm.weight == 1).all() for norm in norms)
    offsets = host.decoder.layers[0].encoder_attn.sampling_offsets
    assert (offsets.weight == 0).all() and offsets.bias.abs().amax().item() >= 1  # the host's initial offsets are kept


@every_kind
def test_a_random_backbone_trains_and_its_parameters_have_the_hosts_names(kind: str):
    detector = build(kind, backbone="mobilenetv3_small_100")
    backbone = detector.model.model.backbone.model._backbone
    plain = timm.create_model("mobilenetv3_small_100", features_only=True)
    assert all(norm.training for norm in detector.train().modules() if isinstance(norm, nn.BatchNorm2d))
    assert all(parameter.requires_grad for parameter in detector.backbone_parameters())
    types = [type(module) for module in backbone.modules()]
    assert types == [type(module) for module in plain.modules()][: len(types)]
    assert detector.model.state_dict().keys() == type(detector.model)(detector.model.config).state_dict().keys()


@every_kind
def test_backbone_weights_are_loaded_and_their_norms_are_frozen(kind: str, tmp_path):
    torch.manual_seed(5)
    source = timm.create_model("resnet18", pretrained=False)
    save_file(source.state_dict(), tmp_path / "resnet18.safetensors")
    weights = str(tmp_path / "resnet18.safetensors")
    detector = tiny(kind, backbone="resnet18", backbone_weights=weights).train()
    backbone = detector.model.model.backbone.model._backbone
    assert torch.equal(backbone.conv1.weight, source.conv1.weight)
    before = backbone.bn1.running_mean.clone()
    observe(detector, make_batch(), make_targets())
    assert torch.equal(backbone.bn1.running_mean, before)
    assert not backbone.bn1.weight.requires_grad and backbone.conv1.weight.requires_grad


@every_kind
def test_a_native_backbone_works_and_trains(kind: str):
    if kind == "d_fine":
        native = {
            "model_type": "hgnet_v2",
            "embedding_size": 8,
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1] * 4,
            "stem_channels": [3, 4, 8],
        }
        native |= {
            "stage_in_channels": [8, 8, 8, 16],
            "stage_mid_channels": [4, 4, 8, 8],
            "stage_out_channels": [8, 8, 16, 16],
        }
        native |= {"stage_num_blocks": [1] * 4, "stage_numb_of_layers": [1] * 4}
    else:
        native = {
            "model_type": "rt_detr_resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1] * 4,
        }
    native["out_features"] = ["stage3", "stage4"]
    detector = perturb(build(kind, strides=(16, 32), backbone="native", backbone_config=native)).train()
    assert not any("Frozen" in type(module).__name__ for module in detector.modules())
    parameters = detector.backbone_parameters()
    assert parameters and all(parameter.requires_grad for parameter in parameters)
    losses = observe(detector, make_batch(), make_targets()).losses
    torch.testing.assert_close(sum(losses.values()), host_forward(detector, make_batch(), make_targets()).loss, **CLOSE)


@every_kind
def test_the_native_backbone_has_four_strides_and_no_weights(kind: str):
    config = ModelConfig(strides=(32, 64), channels=32, backbone_weights="none")
    with pytest.raises(UserError, match="has 4, 8, 16, 32"):
        BUILDERS[kind](config, "native", CLASSES)
    with pytest.raises(
        UserError, match=r"backbone_weights default: a native backbone starts from random weights; set it to none"
    ):
        BUILDERS[kind](ModelConfig(strides=(16, 32), channels=32), "native", CLASSES)


@every_kind
def test_wrong_options_are_refused(kind: str):
    with pytest.raises(UserError, match="twice the one before"):
        build(kind, strides=(8, 32))
    with pytest.raises(UserError, match="none of 64"):
        build(kind, strides=(16, 32, 64))
    with pytest.raises(UserError, match=r"channels 30: .* needs a multiple of 4"):
        build(kind, channels=30)
    with pytest.raises(UserError, match="cells, which can't be added; pad the images"):
        observe(build(kind), make_batch(64, 104))
    family = DFINE if kind == "d_fine" else RTDETR
    model = build(kind).model
    with pytest.raises(
        UserError, match="3 labels, 3 levels in its encoder and 3 in its decoder, but there are 1 classes"
    ):
        family(model, ("one",), (8, 16, 32))
    model.config.eval_size = 640
    with pytest.raises(UserError, match=r"eval_size 640 is not supported .*; choose a model with eval_size None"):
        family(model, CLASSES, (8, 16, 32))
    with pytest.raises(ValueError, match="no towers"):
        build(kind).observe(make_batch(), need=Need(towers=frozenset({1})))


@every_kind
def test_boxes_stay_in_single_precision_under_autocast(kind: str):
    detector = build(kind).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = observe(detector, make_batch(), make_targets())
    assert any("denoising" in name for name in output.losses)
    assert output.stages[-1].boxes.dtype == output.stages[-1].logits.dtype == torch.float32
    assert all(value.isfinite() and value.dtype == torch.float32 for value in output.losses.values())
