"""Deformable DETR against the forward of transformers, and tests of what transformers does not have."""

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection
from transformers.models.deformable_detr.image_processing_deformable_detr import DeformableDetrImageProcessor

from detdistill.detectors.images import normalize, valid_mask
from detdistill.detectors.queries import matching
from detdistill.detectors.queries.detector import QueryDetector, assemble
from detdistill.detectors.statistics import IMAGENET
from detdistill.detectors.transformers import criterion
from detdistill.detectors.transformers.deformable_detr import DeformableDETR, deformable_detr
from detdistill.detectors.transformers.host import unfreeze_backbone
from detdistill.errors import UserError
from detdistill.geometry import to_relative
from detdistill.recipe import ModelConfig
from detdistill.testing import check_detector
from detdistill.types import Batch, Need, QuerySet, Targets
from tests.detectors import builders
from tests.detectors.builders import make_targets

CLASSES = ("disc", "square", "star")
EVERYTHING = Need(pyramids=frozenset({"neck", "memory"}), predictions=True, queries=True)
NAMES = {"classification": "loss_ce", "box": "loss_bbox", "giou": "loss_giou"}


def build(
    strides: tuple[int, ...] = (8, 16, 32, 64), backbone: str = "resnet18", weights: str = "none", **host: object
) -> QueryDetector:
    """A small detector with seeded weights. host: fields of the host's config."""
    torch.manual_seed(0)
    small = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "dropout": 0.0}
    config = ModelConfig(strides=strides, channels=32, queries=20, backbone_weights=weights, score_threshold=0.0)
    return deformable_detr(config, backbone, CLASSES, **small | host)


def perturb(detector: QueryDetector) -> QueryDetector:
    """The detector with random noise on its heads. With published initial weights all boxes have the same size."""
    with torch.no_grad():
        for weight in [*detector.model.class_embed.parameters(), *detector.model.bbox_embed.parameters()]:
            weight.add_(torch.randn_like(weight) * 0.3)
    return detector


def make_batch(height: int = 64, width: int = 96) -> Batch:
    """Two images. The valid size of the second is a whole number of cells on every level."""
    return builders.make_batch(height, width, second=(64, 64))


def host_forward(detector: QueryDetector, batch: Batch, targets: Targets):
    """The forward of transformers. Labels are relative to the valid size of each image."""
    labels = []
    for boxes, classes, (height, width) in zip(targets.boxes, targets.labels, batch.sizes.tolist(), strict=True):
        center, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        scale = torch.tensor([width, height, width, height])
        labels.append({"class_labels": classes, "boxes": torch.cat([center, sides], 1) / scale})
    mask = valid_mask(batch.sizes, *batch.images.shape[-2:]).long()
    return detector.model(normalize(batch, *IMAGENET), pixel_mask=mask, labels=labels)


def published_loss(output: Any) -> Tensor:
    """The host's objective with the published weight of the class terms, 2. The host's weight is 1."""
    return output.loss + sum(term for name, term in output.loss_dict.items() if name.startswith("loss_ce"))


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_losses_boxes_and_maps_equal_the_hosts(training: bool, refine: bool):
    detector = perturb(build(with_box_refine=refine)).train(training)
    batch, targets = make_batch(128, 128), make_targets()
    expected = host_forward(detector, batch, targets)
    output = detector.observe(batch, targets, EVERYTHING)

    torch.testing.assert_close(sum(output.losses.values()), published_loss(expected), rtol=1e-5, atol=1e-5)
    weights = {"classification": 2, "box": 5, "giou": 2}
    for name, value in output.losses.items():
        plain, _, stage = name.partition("_")
        host_term = expected.loss_dict["_".join(filter(None, [NAMES[plain], stage]))]
        torch.testing.assert_close(value, weights[plain] * host_term, rtol=1e-5, atol=1e-6)
    assert len(output.losses) == 6

    host_stages = [*expected.auxiliary_outputs, {"logits": expected.logits, "pred_boxes": expected.pred_boxes}]
    for index, (stage, host_stage) in enumerate(zip(output.stages, host_stages, strict=True)):
        torch.testing.assert_close(stage.logits, host_stage["logits"], rtol=0, atol=1e-5)
        torch.testing.assert_close(to_relative(stage.boxes, batch.sizes), host_stage["pred_boxes"], rtol=0, atol=1e-5)
        torch.testing.assert_close(stage.embeddings, expected.intermediate_hidden_states[:, index], rtol=0, atol=1e-5)
    tokens = torch.cat([level.flatten(2) for level in output.pyramids["memory"].levels], 2).transpose(1, 2)
    torch.testing.assert_close(tokens, expected.encoder_last_hidden_state, rtol=0, atol=1e-5)
    for name in ("neck", "memory"):
        shapes = [tuple(level.shape) for level in output.pyramids[name].levels]
        assert shapes == [(2, 32, 128 // stride, 128 // stride) for stride in detector.info.strides]


def test_gradients_equal_the_hosts():
    detector = perturb(build()).eval()
    batch, targets = make_batch(), make_targets()
    parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    host_gradients = torch.autograd.grad(published_loss(host_forward(detector, batch, targets)), parameters)
    gradients = torch.autograd.grad(sum(detector.observe(batch, targets).losses.values()), parameters)
    for gradient, host_gradient in zip(gradients, host_gradients, strict=True):
        # The bias of a key has no effect on a softmax, so its gradient is rounding error.
        atol = 1e-4 * float(host_gradient.abs().max()) + 2e-5
        torch.testing.assert_close(gradient, host_gradient, rtol=1e-3, atol=atol)


def test_detections_equal_the_published_post_processing():
    detector = perturb(build()).eval()
    batch = make_batch(96, 128)
    with torch.no_grad():
        raw = host_forward(detector, batch, make_targets())
    published = DeformableDetrImageProcessor().post_process_object_detection(
        raw, threshold=0.0, target_sizes=batch.sizes, top_k=100
    )
    detector.detections = 60  # all of 20 queries x 3 classes
    for detections, host, (height, width) in zip(detector.detect(batch), published, batch.sizes.tolist(), strict=True):
        clipped = torch.stack([host["boxes"][:, i].clamp(0, (width, height)[i % 2]) for i in range(4)], 1)
        torch.testing.assert_close(detections.scores, host["scores"], rtol=0, atol=1e-5)
        torch.testing.assert_close(detections.boxes, clipped, rtol=0, atol=1e-2)
        assert torch.equal(detections.labels, host["labels"])
        assert (detections.scores.diff() <= 0).all()
    detector.detections, detector.score_threshold = 5, float(detections.scores[2])
    assert len(detector.detect(batch)[1].scores) == 2


@pytest.mark.parametrize("refine", [False, True])
def test_redecoding_the_detectors_own_queries_gives_the_same_stages(refine: bool):
    output = perturb(build(with_box_refine=refine)).eval().observe(make_batch(96, 128), need=EVERYTHING)
    redecoded = output.queries.redecode(output.queries.own)
    for first, second in zip(output.stages, redecoded, strict=True):
        torch.testing.assert_close(first.logits, second.logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(first.boxes, second.boxes, rtol=0, atol=1e-3)
    derived = output.queries.redecode(replace(output.queries.own, reference=None))
    torch.testing.assert_close(derived[-1].boxes, output.stages[-1].boxes, rtol=0, atol=1e-3)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_gradients_of_a_teachers_queries_reach_the_student_only(coordinates: int):
    student, teacher = build(strides=(16, 32)), build(num_queries=33)
    batch = make_batch()
    with torch.no_grad():
        own = teacher.eval().observe(batch, need=Need(queries=True)).queries.own
    boxes = torch.cat([own.reference, torch.full_like(own.reference, 0.2)], -1)
    teacher_queries = replace(own, reference=boxes[..., :coordinates])
    output = student.observe(batch, need=Need(queries=True))
    assert output.stages == ()  # its own queries were not decoded
    stages = output.queries.redecode(teacher_queries)
    assert [tuple(stage.boxes.shape) for stage in stages] == [(2, 33, 4)] * 2
    sum(stage.embeddings.square().sum() + stage.boxes.sum() for stage in stages).backward()
    for part in (student.model.model.backbone, student.model.model.encoder, student.model.model.decoder):
        assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in part.parameters())
    assert student.model.model.query_position_embeddings.weight.grad is None
    assert all(parameter.grad is None for parameter in teacher.parameters())
    narrow = QuerySet(own.content[..., :16], own.position[..., :16], own.reference)
    with pytest.raises(ValueError, match="32 wide; got 16"):
        output.queries.redecode(narrow)


def test_sampled_queries_are_seeded_and_decodable():
    queries = build().eval().observe(make_batch(), need=Need(queries=True)).queries
    first, same, different = [queries.sample(7, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(first.content, same.content)
    assert not torch.equal(first.content, different.content)
    assert queries.redecode(first)[-1].boxes.shape == (2, 7, 4)


def test_a_reference_is_a_point_of_the_padded_batch():
    """Without encoder and sampling offsets, the gradient of a query is on the cells around its reference point."""
    detector = build(strides=(8, 16), encoder_layers=0).eval()
    with torch.no_grad():
        for layer in detector.model.model.decoder.layers:
            layer.encoder_attn.sampling_offsets.weight.zero_()
            layer.encoder_attn.sampling_offsets.bias.zero_()
    output = detector.observe(make_batch(128, 192), need=Need(queries=True))
    level = output.pyramids["neck"].levels[0]
    x, y = 44.0, 20.0  # the center of row 2, column 5 at stride 8
    point = torch.tensor([x / 192, y / 128]).expand(2, 1, 2)
    stages = output.queries.redecode(QuerySet(torch.randn(2, 1, 32), torch.randn(2, 1, 32), point))
    weight = torch.randn(2, 1, 32)
    (gradient,) = torch.autograd.grad((stages[0].embeddings * weight).sum(), level)
    touched = gradient.abs().sum(1)  # (B, H, W); the other bilinear corners have rounding error only
    for image in touched:
        assert divmod(int(image.argmax()), image.shape[1]) == (2, 5)
        assert image[2, 5] > 0.99 * image.sum()


def test_more_padding_and_its_content_do_not_change_boxes():
    detector = build().eval()
    with torch.no_grad():
        # Boxes then depend on the reference only. Features do change, because the group norm includes the padding.
        for head in detector.model.bbox_embed:
            head.layers[-1].weight.zero_()
    near, far = make_batch(64, 96), make_batch(128, 192)
    junk = far.images.clone()
    junk[:, :, 64:], junk[:, :, :, 96:], junk[1, :, :, 64:] = 200, 99, 50
    batches = (near, far, replace(far, images=junk))
    stages = [detector.observe(batch, need=Need(predictions=True)).stages[-1] for batch in batches]
    torch.testing.assert_close(stages[0].boxes, stages[1].boxes, rtol=0, atol=1e-3)
    assert torch.equal(stages[1].logits, stages[2].logits)
    assert (stages[0].boxes[1, :, 0::2].mean(-1) < 64).all()  # centers are inside the narrow image


def test_a_few_steps_reach_every_parameter_and_lower_the_loss():
    detector, batch, targets = build(dropout=0.1).train(), make_batch(), make_targets()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    history = []
    for _ in range(8):
        loss = sum(detector.observe(batch, targets).losses.values())
        optimizer.zero_grad()
        loss.backward()
        assert [name for name, value in detector.named_parameters() if value.grad is None] == []
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.93 * history[0]


def test_every_stage_matches_each_ground_truth_with_one_query():
    detector = build()
    output = detector.observe(make_batch(), make_targets())
    for stage in output.stages:
        matched = stage.assignment.matched
        assert sorted(matched[0][matched[0] >= 0].tolist()) == [0, 1]
        assert sorted(matched[1][matched[1] >= 0].tolist()) == [0]
        assert float(stage.assignment.num_positives) == 3
        assert stage.assignment.valid.all()
    last = output.stages[-1]
    moved = last.boxes.detach().clone()
    moved[0, 13], moved[1, 4] = make_targets().boxes[0][1], make_targets().boxes[1][0]
    matched = detector.family.matcher([replace(last, boxes=moved)], make_batch().sizes, make_targets())[0].matched
    assert int(matched[0, 13]) == 1  # a perfect box is matched
    assert int(matched[1, 4]) == 0


def test_the_normalizer_is_averaged_over_processes(monkeypatch: pytest.MonkeyPatch):
    detector = build()
    one_process = detector.observe(make_batch(), make_targets()).losses
    for module in (criterion, matching):
        # As if a second process had three times the objects.
        monkeypatch.setattr(module, "mean_over_processes", lambda count: 2 * count)
    two_processes = detector.observe(make_batch(), make_targets()).losses
    for name, value in one_process.items():
        torch.testing.assert_close(two_processes[name], value / 2)


def test_images_without_objects_give_finite_losses_and_gradients():
    detector = build()
    losses = detector.observe(make_batch(), make_targets(empty=True)).losses
    assert losses["box"].item() == 0
    assert losses["classification"].item() > 0
    sum(losses.values()).backward()
    assert all(value.grad is None or value.grad.isfinite().all() for value in detector.parameters())


def test_predictions_that_are_not_finite_give_nan_losses():
    detector = build()
    with torch.no_grad():
        detector.model.class_embed[0].bias[1] = float("inf")
    losses = detector.observe(make_batch(), make_targets()).losses
    assert all(value.isnan() for value in losses.values())


def test_every_parameter_and_norm_of_a_random_backbone_trains():
    detector = build(backbone="mobilenetv3_small_100")
    backbone = detector.model.model.backbone.model
    plain = timm.create_model("mobilenetv3_small_100", features_only=True, out_indices=(2, 3, 4))
    assert all(parameter.requires_grad for parameter in detector.parameters())
    assert len(detector.backbone_parameters()) == len(list(plain.parameters()))
    assert sorted(type(module).__name__ for module in backbone.modules()) == sorted(
        type(module).__name__ for module in plain.modules()
    )
    assert all(norm.training for norm in detector.train().modules() if isinstance(norm, nn.BatchNorm2d))
    assert not any("Frozen" in type(module).__name__ for module in detector.modules())


def test_a_native_backbone_works_and_trains():
    """transformers freezes every parameter of its native ResNet here."""
    resnet = {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1] * 4,
        "layer_type": "basic",
    }
    resnet["out_features"] = ["stage3", "stage4"]
    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "dropout": 0.0}
    config = DeformableDetrConfig(
        backbone_config=resnet, num_labels=3, num_feature_levels=2, d_model=32, num_queries=9, class_cost=2, **layers
    )
    config.auxiliary_loss = True
    model = DeformableDetrForObjectDetection(config)
    assert not any(parameter.requires_grad for parameter in model.model.backbone.parameters())
    unfreeze_backbone(model.model.backbone)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.model.backbone.modules())
    detector = assemble(DeformableDETR(model, CLASSES, (16, 32)), ModelConfig(score_threshold=0.0)).eval()
    assert all(parameter.requires_grad for parameter in detector.backbone_parameters())
    losses = detector.observe(make_batch(), make_targets()).losses
    host = published_loss(host_forward(detector, make_batch(), make_targets()))
    torch.testing.assert_close(sum(losses.values()), host, rtol=1e-5, atol=1e-5)


def test_the_native_backbone_builds_by_name_and_matches_the_host():
    detector = build((16, 32, 64), backbone="native").eval()
    assert detector.backbone_parameters() and all(parameter.requires_grad for parameter in detector.parameters())
    losses = detector.observe(make_batch(), make_targets()).losses
    host = published_loss(host_forward(detector, make_batch(), make_targets()))
    torch.testing.assert_close(sum(losses.values()), host, rtol=1e-5, atol=1e-5)


def test_backbone_weights_are_loaded_and_their_norms_are_frozen(tmp_path):
    torch.manual_seed(5)
    source = timm.create_model("resnet18", pretrained=False)
    save_file(source.state_dict(), tmp_path / "resnet18.safetensors")
    weights = str(tmp_path / "resnet18.safetensors")
    detector = builders.tiny("deformable_detr", backbone="resnet18", backbone_weights=weights).train()
    backbone = detector.model.model.backbone.model
    assert torch.equal(backbone.conv1.weight, source.conv1.weight)
    before = backbone.bn1.running_mean.clone()
    detector.observe(make_batch(), make_targets())
    assert torch.equal(backbone.bn1.running_mean, before)
    assert not backbone.bn1.weight.requires_grad
    assert backbone.conv1.weight.requires_grad
    fresh = builders.tiny("deformable_detr", backbone="resnet18")
    assert fresh.state_dict().keys() == detector.state_dict().keys()  # a run can be rebuilt without the file of weights


def test_initial_weights_are_the_published_ones():
    output = build().eval().observe(make_batch(), need=EVERYTHING)
    assert output.stages[-1].scores().mean().item() == pytest.approx(0.01, abs=0.01)
    assert output.queries.own.reference[0].std(0).min() > 0.1
    sides = to_relative(output.stages[0].boxes, make_batch().sizes)[..., 2:]
    torch.testing.assert_close(sides, torch.full_like(sides, 1 / (1 + torch.e**2)), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("need", "runs"),
    [
        (Need(), ""),
        (Need(pyramids=frozenset({"neck"})), ""),
        (Need(pyramids=frozenset({"memory"})), "e"),
        (Need(queries=True), "e"),
        (Need(predictions=True), "ed"),
    ],
)
def test_observe_stops_when_the_need_is_met(need: Need, runs: str, monkeypatch: pytest.MonkeyPatch):
    detector, ran = build().eval(), []
    for letter, part in (("e", detector.model.model.encoder), ("d", detector.model.model.decoder)):
        forward = part.forward
        monkeypatch.setattr(
            part, "forward", lambda *args, f=forward, c=letter, **kwargs: ran.append(c) or f(*args, **kwargs)
        )
    output = detector.observe(make_batch(), need=need)
    assert "".join(ran) == runs
    assert set(output.pyramids) == ({"neck", "memory"} if runs else {"neck"})
    assert bool(output.stages) == need.predictions
    assert (output.queries is not None) == need.queries


def test_levels_have_the_strides_of_the_config():
    for strides in ((8, 16, 32), (16, 32, 64, 128), (32,)):
        neck = build(strides=strides).observe(make_batch(128, 128)).pyramids["neck"]
        assert neck.strides == strides
        assert [level.shape[-1] for level in neck.levels] == [128 // stride for stride in strides]


def test_wrong_options_are_refused():
    with pytest.raises(UserError, match="twice the one before"):
        build(strides=(8, 32))
    with pytest.raises(UserError, match="no map of stride 1"):
        build(strides=(1, 2, 4, 8))
    with pytest.raises(UserError, match="multiple of 32"):
        deformable_detr(ModelConfig(strides=(16, 32), channels=48, backbone_weights="none"), "resnet18", CLASSES)
    with pytest.raises(UserError, match="at least 2 decoder layers"):
        build(decoder_layers=1)
    with pytest.raises(UserError, match="3 labels and 4 levels"):
        DeformableDETR(build().model, ("one",), (8, 16, 32, 64))
    with pytest.raises(ValueError, match="no towers"):
        build().observe(make_batch(), need=Need(towers=frozenset({1})))


def test_boxes_stay_in_single_precision_under_autocast():
    detector = build().train()
    with torch.autocast("cpu", torch.bfloat16):
        output = detector.observe(make_batch(), make_targets())
    assert output.stages[-1].boxes.dtype == torch.float32
    assert all(value.isfinite() and value.dtype == torch.float32 for value in output.losses.values())


def two_stage() -> QueryDetector:
    """A small two-stage detector with seeded weights."""
    torch.manual_seed(0)
    config = ModelConfig(
        strides=(8, 16, 32),
        channels=32,
        queries=15,
        encoder_layers=1,
        decoder_layers=2,
        two_stage=True,
        backbone_weights="none",
        score_threshold=0.0,
    )
    return perturb(deformable_detr(config, "resnet18", CLASSES, dropout=0.0, encoder_ffn_dim=64, decoder_ffn_dim=64))


def test_two_stage_predictions_and_losses_equal_the_hosts():
    detector = two_stage().eval()
    batch, targets = make_batch(128, 128), make_targets()
    expected = host_forward(detector, batch, targets)
    output = detector.observe(batch, targets, EVERYTHING)
    last = output.stages[-1]
    torch.testing.assert_close(last.logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(to_relative(last.boxes, batch.sizes), expected.pred_boxes, rtol=0, atol=1e-5)
    own = output.queries.own.reference / (batch.sizes.flip(-1) / 128)[:, None].repeat(1, 1, 2)
    torch.testing.assert_close(own, expected.init_reference_points, rtol=0, atol=1e-5)
    encoder = {name for name in output.losses if name.endswith("_encoder")}
    assert encoder == {"classification_encoder", "box_encoder", "giou_encoder"}
    decoder_sum = sum(term for name, term in output.losses.items() if name not in encoder)
    torch.testing.assert_close(decoder_sum, published_loss(expected), rtol=1e-5, atol=1e-5)


def test_two_stage_proposals_are_trained_unlike_in_the_host():
    detector = two_stage().train()
    host_forward(detector, make_batch(), make_targets()).loss.backward()
    assert detector.model.model.enc_output.weight.grad is None
    detector.zero_grad()
    sum(detector.observe(make_batch(), make_targets()).losses.values()).backward()
    assert [name for name, value in detector.named_parameters() if value.grad is None] == []


def test_two_stage_redecodes_queries_with_a_reference_only():
    detector = two_stage().eval()
    output = detector.observe(make_batch(96, 128), need=EVERYTHING)
    redecoded = output.queries.redecode(QuerySet(reference=output.queries.own.reference))
    torch.testing.assert_close(redecoded[-1].logits, output.stages[-1].logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(redecoded[-1].boxes, output.stages[-1].boxes, rtol=0, atol=1e-2)
    assert not detector.info.queries.learned
    assert detector.info.queries.parts == {"reference"}
    few = output.queries.sample(4, torch.Generator().manual_seed(0))
    assert output.queries.redecode(few)[-1].boxes.shape == (2, 4, 4)


def test_all_variants_pass_check_detector():
    for options in ({}, {"with_box_refine": True}):
        check_detector(perturb(build((8, 16, 32), **options)))
    check_detector(two_stage())
