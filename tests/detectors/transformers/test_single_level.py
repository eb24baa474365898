"""Tests that DETR, Conditional DETR and DAB-DETR share."""

from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers.models.conditional_detr.image_processing_conditional_detr import ConditionalDetrImageProcessor

from detdistill.detectors.queries import matching
from detdistill.detectors.queries.detector import Features, QueryDetector
from detdistill.detectors.transformers import criterion, detr
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.testing import check_detector
from detdistill.types import Need, QuerySet
from tests.detectors.builders import make_batch, make_targets, tiny
from tests.detectors.transformers.single_level import (
    CLASSES,
    EVERYTHING,
    FAMILIES,
    assert_same_gradients,
    assert_same_last_stage,
    assert_same_losses,
    build,
    heads,
    host_forward,
    host_logits,
    perturb,
    published_loss,
)

every_kind = pytest.mark.parametrize("kind", FAMILIES)
without_refinement = pytest.mark.parametrize("kind", ["detr", "conditional_detr"])  # DAB-DETR refines boxes per layer
with_sigmoids = pytest.mark.parametrize("kind", ["conditional_detr", "dab_detr"])
PARTS = {"detr": "position", "conditional_detr": "position", "dab_detr": "reference"}


def timm_backbone(detector: QueryDetector) -> nn.Module:
    """The timm backbone inside the detector."""
    backbone = detector.model.model.backbone
    return backbone.conv_encoder.model._backbone if detector.info.kind == "dab_detr" else backbone.model


def learned_queries(detector: QueryDetector) -> nn.Parameter:
    """The embeddings of the learned queries."""
    host = detector.model.model
    is_dab = detector.info.kind == "dab_detr"
    return (host.query_refpoint_embeddings if is_dab else host.query_position_embeddings).weight


@every_kind
def test_it_passes_check_detector(kind: str):
    detector = perturb(build(kind))
    check_detector(detector)
    info = detector.info
    assert (info.kind, info.strides, info.queries.width, info.queries.learned) == (kind, (16,), 32, True)
    assert info.queries.parts == {PARTS[kind]}


@every_kind
def test_redecoding_the_detectors_own_queries_gives_the_same_stages(kind: str):
    output = perturb(build(kind)).eval().observe(make_batch(96, 128), need=EVERYTHING)
    own = output.queries.own
    for query_set in (own, replace(own, content=torch.zeros(2, 20, 32))):
        for first, second in zip(output.stages, output.queries.redecode(query_set), strict=True):
            torch.testing.assert_close(host_logits(first), host_logits(second), rtol=0, atol=1e-5)
            torch.testing.assert_close(first.boxes, second.boxes, rtol=0, atol=1e-3)
    last = output.queries.redecode(replace(own, content=torch.ones(2, 20, 32)))[-1]
    assert (last.logits - output.stages[-1].logits).abs().max() > 0.01  # the decoder starts from this content


@every_kind
def test_gradients_of_a_teachers_queries_reach_the_student_only(kind: str):
    student, teacher, batch = build(kind), build(kind, num_queries=33), make_batch()
    with torch.no_grad():
        teacher_queries = teacher.eval().observe(batch, need=Need(queries=True)).queries.own
    output = student.observe(batch, need=Need(queries=True))
    assert output.stages == ()  # its own queries were not decoded
    stages = output.queries.redecode(teacher_queries)
    assert [tuple(stage.boxes.shape) for stage in stages] == [(2, 33, 4)] * 3
    weights = torch.randn(3, 2, 33, 32)  # without weights the sum of normed states is constant
    pairs = zip(stages, weights, strict=True)
    sum((stage.embeddings * weight).sum() + stage.boxes.sum() for stage, weight in pairs).backward()
    for part in (student.model.model.backbone, student.model.model.encoder, student.model.model.decoder):
        assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in part.parameters())
    assert learned_queries(student).grad is None
    assert all(parameter.grad is None for parameter in teacher.parameters())


@every_kind
def test_queries_that_do_not_fit_are_refused(kind: str):
    queries, part = build(kind).eval().observe(make_batch(), need=Need(queries=True)).queries, PARTS[kind]
    with pytest.raises(ValueError, match=f"got no {part}"):
        queries.redecode(QuerySet(content=torch.zeros(2, 5, 32)))
    with pytest.raises(ValueError, match="wide; got 2"):
        queries.redecode(QuerySet(**{part: torch.rand(2, 5, 2)}))
    with pytest.raises(ValueError, match=r"32 wide .* got \(2, 5, 16\)"):
        queries.redecode(replace(queries.sample(5, torch.Generator()), content=torch.zeros(2, 5, 16)))


@every_kind
def test_sampled_queries_are_seeded_and_decodable(kind: str):
    queries, part = build(kind).eval().observe(make_batch(), need=Need(queries=True)).queries, PARTS[kind]
    sampled = [getattr(queries.sample(7, torch.Generator().manual_seed(seed)), part) for seed in (3, 3, 4)]
    first = sampled[0]
    assert torch.equal(first, sampled[1])
    assert not torch.equal(first, sampled[2])
    assert queries.redecode(QuerySet(**{part: first}))[-1].boxes.shape == (2, 7, 4)
    if kind == "dab_detr":  # the same part of each valid area
        torch.testing.assert_close(first[1] * torch.tensor([96 / 64, 64 / 48] * 2), first[0])


@every_kind
def test_more_padding_changes_nothing_after_the_neck(kind: str):
    """Features of the backbone at the edge of an image do depend on the padding of the batch."""
    family, generator = perturb(build(kind)).eval().family, torch.Generator().manual_seed(2)
    level, mask = torch.randn(2, 32, 4, 6, generator=generator), torch.ones(2, 4, 6, dtype=torch.bool)
    mask[1, 3:], mask[1, :, 4:] = False, False
    sizes, stages = torch.tensor([[64, 96], [48, 64]]), []
    for rows, columns in ((4, 6), (8, 9)):
        wide, inside = torch.full((2, 32, rows, columns), 7.0), torch.zeros(2, rows, columns, dtype=torch.bool)
        wide[:, :, :4, :6], inside[:, :4, :6] = torch.where(mask[:, None], level, float(rows)), mask
        memory = family.encode(Features((wide,), (inside,), sizes, (16 * rows, 16 * columns)))
        stages.append(family.decode(family.queries(memory), memory))
    for near, far in zip(*stages, strict=True):
        torch.testing.assert_close(near.boxes, far.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(near.logits, far.logits, rtol=0, atol=1e-4)


@every_kind
def test_a_few_steps_reach_every_parameter_and_lower_the_loss(kind: str):
    detector, batch, targets = build(kind, dropout=0.1).train(), make_batch(), make_targets()
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


@every_kind
def test_every_stage_matches_each_ground_truth_with_one_query(kind: str):
    detector = perturb(build(kind))
    output = detector.observe(make_batch(), make_targets())
    for stage in output.stages:
        matched = stage.assignment.matched
        assert sorted(matched[0][matched[0] >= 0].tolist()) == [0, 1]
        assert sorted(matched[1][matched[1] >= 0].tolist()) == [0]
        assert float(stage.assignment.num_positives) == 3
    last = output.stages[-1]
    moved = last.boxes.detach().clone()
    moved[0, 13], moved[1, 4] = make_targets().boxes[0][1], make_targets().boxes[1][0]
    matched = detector.family.matcher([replace(last, boxes=moved)], make_batch().sizes, make_targets())[0].matched
    assert int(matched[0, 13]) == 1  # a perfect box is matched
    assert int(matched[1, 4]) == 0


@every_kind
def test_the_normalizer_is_averaged_over_processes(kind: str, monkeypatch: pytest.MonkeyPatch):
    detector = build(kind)
    one_process = detector.observe(make_batch(), make_targets()).losses
    for module in (criterion, matching, detr):
        # As if a second process had three times the objects.
        monkeypatch.setattr(module, "mean_over_processes", lambda count, floor=1.0: 2 * count)
    two_processes = detector.observe(make_batch(), make_targets()).losses
    for name, value in one_process.items():
        torch.testing.assert_close(two_processes[name], value / 2)


@every_kind
def test_images_without_objects_give_finite_losses_and_gradients(kind: str):
    detector = build(kind)
    losses = detector.observe(make_batch(), make_targets(empty=True)).losses
    assert losses["box"].item() == 0
    assert losses["classification"].item() > 0
    sum(losses.values()).backward()
    assert all(value.grad.isfinite().all() for value in detector.parameters())


@every_kind
def test_predictions_that_are_not_finite_give_nan_losses(kind: str):
    detector = build(kind)
    with torch.no_grad():
        heads(detector)[0].bias[1] = float("inf")
    assert all(value.isnan() for value in detector.observe(make_batch(), make_targets()).losses.values())


@every_kind
def test_every_parameter_and_norm_of_a_random_backbone_trains(kind: str):
    detector = build(kind, backbone="mobilenetv3_small_100", stride=32)
    backbone = timm_backbone(detector)
    plain = timm.create_model("mobilenetv3_small_100", features_only=True, out_indices=(4,))
    assert all(parameter.requires_grad for parameter in detector.parameters())
    assert len(detector.backbone_parameters()) == len(list(plain.parameters()))
    assert sorted(type(module).__name__ for module in backbone.modules()) == sorted(
        type(module).__name__ for module in plain.modules()
    )
    assert all(norm.training for norm in detector.train().modules() if isinstance(norm, nn.BatchNorm2d))
    assert not any("Frozen" in type(module).__name__ for module in detector.modules())
    assert detector.observe(make_batch(), make_targets()).pyramids["neck"].levels[0].shape == (2, 32, 2, 3)


@every_kind
def test_a_native_backbone_works_and_trains(kind: str):
    resnet = {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1] * 4,
        "layer_type": "basic",
    }
    detector = build(kind, backbone="native", stride=32, backbone_config=resnet | {"out_features": ["stage4"]})
    assert all(parameter.requires_grad for parameter in detector.backbone_parameters())
    assert any(isinstance(module, nn.BatchNorm2d) for module in detector.family.backbone().modules())
    output = detector.observe(make_batch(), make_targets())
    sum(output.losses.values()).backward()
    assert all(parameter.grad is not None for parameter in detector.parameters())
    assert output.pyramids["neck"].levels[0].shape == (2, 32, 2, 3)


@every_kind
def test_backbone_weights_are_loaded_and_their_norms_are_frozen(kind: str, tmp_path):
    torch.manual_seed(5)
    source = timm.create_model("resnet18", pretrained=False)
    save_file(source.state_dict(), tmp_path / "resnet18.safetensors")
    weights = str(tmp_path / "resnet18.safetensors")
    detector = tiny(kind, backbone="resnet18", backbone_weights=weights).train()
    backbone = timm_backbone(detector)
    assert torch.equal(backbone.conv1.weight, source.conv1.weight)
    before = backbone.bn1.running_mean.clone()
    detector.observe(make_batch(), make_targets())
    assert torch.equal(backbone.bn1.running_mean, before)
    assert not backbone.bn1.weight.requires_grad
    assert backbone.conv1.weight.requires_grad
    # A run can be rebuilt without the file of weights.
    assert tiny(kind, backbone="resnet18").state_dict().keys() == detector.state_dict().keys()


@every_kind
@pytest.mark.parametrize(
    ("need", "runs"),
    [
        (Need(), ""),
        (Need(pyramids=frozenset({"neck"})), ""),
        (Need(pyramids=frozenset({"memory"})), "e"),
        (Need(queries=True), "e"),
        (Need(predictions=True), "eddd"),
    ],
)
def test_observe_stops_when_the_need_is_met(kind: str, need: Need, runs: str, monkeypatch: pytest.MonkeyPatch):
    detector, ran = build(kind).eval(), []
    parts = [("e", detector.model.model.encoder), *(("d", layer) for layer in detector.model.model.decoder.layers)]
    for letter, part in parts:
        forward = part.forward
        monkeypatch.setattr(
            part, "forward", lambda *args, f=forward, c=letter, **kwargs: ran.append(c) or f(*args, **kwargs)
        )
    output = detector.observe(make_batch(), need=need)
    assert "".join(ran) == runs
    assert set(output.pyramids) == ({"neck", "memory"} if runs else {"neck"})
    assert bool(output.stages) == need.predictions
    assert (output.queries is not None) == need.queries


@every_kind
def test_boxes_stay_in_single_precision_under_autocast(kind: str):
    detector = build(kind).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = detector.observe(make_batch(), make_targets())
    assert output.stages[-1].boxes.dtype == torch.float32
    assert all(value.isfinite() and value.dtype == torch.float32 for value in output.losses.values())


@every_kind
def test_the_config_sets_the_numbers_of_layers(kind: str):
    config = ModelConfig(
        strides=(32,), channels=32, queries=5, encoder_layers=1, decoder_layers=1, backbone_weights="none"
    )
    detector = getattr(FAMILIES[kind], kind)(config, "resnet18", CLASSES)
    assert (len(detector.model.model.encoder.layers), len(detector.model.model.decoder.layers)) == (1, 1)
    assert [stage.boxes.shape for stage in detector.observe(make_batch(), make_targets()).stages] == [(2, 5, 4)]


@every_kind
def test_wrong_options_are_refused(kind: str):
    builder, model = getattr(FAMILIES[kind], kind), build(kind).model
    with pytest.raises(UserError, match=rf"model\.strides \(16, 32\): {kind} has one level"):
        builder(ModelConfig(strides=(16, 32), backbone_weights="none"), "resnet18", CLASSES)
    with pytest.raises(UserError, match=r"none of model\.strides \(64,\)"):
        build(kind, stride=64)
    with pytest.raises(UserError, match=r"model\.channels 36: .* multiple of 8"):
        builder(ModelConfig(strides=(32,), channels=36, backbone_weights="none"), "resnet18", CLASSES)
    with pytest.raises(UserError, match="3 labels and one level, but there are 1 classes"):
        FAMILIES[kind].adapt(model, ("one",), (16,))
    with pytest.raises(UserError, match=r"strides \(8, 16\)"):
        FAMILIES[kind].adapt(model, CLASSES, (8, 16))
    detector = QueryDetector(FAMILIES[kind].adapt(model, CLASSES, (16,)), detections=100, score_threshold=0.0)
    with pytest.raises(ValueError, match="no towers"):
        detector.observe(make_batch(), need=Need(towers=frozenset({1})))


@without_refinement
@pytest.mark.parametrize("training", [False, True])
def test_boxes_maps_and_losses_equal_the_hosts(kind: str, training: bool):
    detector = perturb(build(kind)).train(training)
    batch, targets = make_batch(96, 128), make_targets()
    expected = host_forward(detector, batch, targets, output_hidden_states=True)
    output = detector.observe(batch, targets, EVERYTHING)
    assert_same_last_stage(detector, output, expected, batch)
    norm = detector.model.model.decoder.layernorm
    host_states = expected.decoder_hidden_states[1:-1]  # the first is the input of the decoder
    for stage, state in zip(output.stages[:-1], host_states, strict=True):
        torch.testing.assert_close(stage.embeddings, norm(state), rtol=0, atol=1e-5)
    assert_same_losses(detector, output, batch, targets)
    last = sum(output.losses[name] for name in ("classification", "box", "giou"))
    torch.testing.assert_close(last, published_loss(detector, expected.loss, expected.loss_dict))


@without_refinement
def test_gradients_equal_the_hosts(kind: str):
    assert_same_gradients(perturb(build(kind)).eval(), make_batch(), make_targets())


@without_refinement
def test_auxiliary_losses_do_not_change_predictions(kind: str):
    """In the host they do."""
    detector, batch = perturb(build(kind)).eval(), make_batch()
    stages = detector.observe(batch, need=EVERYTHING).stages
    host = host_forward(detector, batch, make_targets()).logits
    detector.model.config.auxiliary_loss = True
    for before, after in zip(stages, detector.observe(batch, need=EVERYTHING).stages, strict=True):
        assert torch.equal(host_logits(before), host_logits(after))
    assert (host_forward(detector, batch, make_targets()).logits - host).abs().max() > 0.01


@with_sigmoids
def test_detections_equal_the_published_post_processing(kind: str):
    detector, batch = build(kind), make_batch(96, 128)
    torch.manual_seed(1)  # noise without equal scores, whose order is not defined
    perturb(detector).eval()
    with torch.no_grad():
        raw = host_forward(detector, batch, make_targets())
    published = ConditionalDetrImageProcessor().post_process_object_detection(
        raw, threshold=0.0, target_sizes=batch.sizes, top_k=60
    )
    detector.detections = 60  # all of 20 queries x 3 classes
    for detections, host, (height, width) in zip(detector.detect(batch), published, batch.sizes.tolist(), strict=True):
        limit = torch.tensor([width, height, width, height])
        torch.testing.assert_close(detections.scores, host["scores"], rtol=0, atol=1e-5)
        torch.testing.assert_close(detections.boxes, host["boxes"].clamp(min=0).minimum(limit), rtol=0, atol=1e-2)
        assert torch.equal(detections.labels, host["labels"])
