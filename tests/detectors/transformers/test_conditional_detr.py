"""Conditional DETR against the forward of transformers. Shared tests are in test_single_level.py."""

import pytest
import torch
from transformers.models.conditional_detr.image_processing_conditional_detr import ConditionalDetrImageProcessor

from detdistill.geometry import to_relative
from detdistill.types import QuerySet
from tests.detectors.builders import make_batch, make_targets
from tests.detectors.transformers.single_level import (
    EVERYTHING,
    assert_same_gradients,
    assert_same_last_stage,
    assert_same_losses,
    build,
    host_forward,
    perturb,
)


@pytest.mark.parametrize("training", [False, True])
def test_boxes_maps_and_losses_equal_the_hosts(training: bool):
    detector = perturb(build("conditional_detr")).train(training)
    batch, targets = make_batch(96, 128), make_targets()
    expected = host_forward(detector, batch, targets, output_hidden_states=True)
    output = detector.observe(batch, targets, EVERYTHING)
    assert_same_last_stage(detector, output, expected, batch)
    norm = detector.model.model.decoder.layernorm
    host_states = expected.decoder_hidden_states[1:-1]  # the first is the input of the decoder
    for stage, state in zip(output.stages[:-1], host_states, strict=True):
        torch.testing.assert_close(stage.embeddings, norm(state), rtol=0, atol=1e-5)
    assert_same_losses(detector, output, batch, targets)
    torch.testing.assert_close(sum(output.losses[name] for name in ("classification", "box", "giou")), expected.loss)


def test_gradients_equal_the_hosts():
    assert_same_gradients(perturb(build("conditional_detr")).eval(), make_batch(), make_targets())


def test_auxiliary_losses_do_not_change_predictions():
    """In the host they do."""
    detector, batch = perturb(build("conditional_detr")).eval(), make_batch()
    stages = detector.observe(batch, need=EVERYTHING).stages
    host = host_forward(detector, batch, make_targets()).logits
    detector.model.config.auxiliary_loss = True
    for before, after in zip(stages, detector.observe(batch, need=EVERYTHING).stages, strict=True):
        assert torch.equal(before.logits, after.logits)
    assert (host_forward(detector, batch, make_targets()).logits - host).abs().max() > 0.01


def test_reference_points_are_computed_from_the_position_and_no_reference_is_read():
    detector = build("conditional_detr").eval()  # before training, its boxes are the point and half of the sides
    batch = make_batch()
    queries = detector.observe(batch, need=EVERYTHING).queries
    position = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(3))
    points = detector.model.model.decoder.ref_point_head(position).sigmoid()
    for query_set in (QuerySet(position=position), QuerySet(position=position, reference=torch.rand(2, 7, 2))):
        boxes = to_relative(queries.redecode(query_set)[-1].boxes, batch.sizes)
        torch.testing.assert_close(boxes[..., :2], points, rtol=0, atol=1e-5)
        torch.testing.assert_close(boxes[..., 2:], torch.full((2, 7, 2), 0.5), rtol=0, atol=1e-5)


def test_detections_equal_the_published_post_processing():
    detector, batch = perturb(build("conditional_detr")).eval(), make_batch(96, 128)
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


def test_initial_weights_are_the_published_ones():
    detector = build("conditional_detr").eval()
    host = detector.model.model
    scores = detector.observe(make_batch(), need=EVERYTHING).stages[-1].scores()
    assert scores.mean().item() == pytest.approx(0.01, abs=0.005)
    assert host.query_position_embeddings.weight.std().item() == pytest.approx(1, abs=0.1)
    encoder_value = host.encoder.layers[0].self_attn.v_proj.weight
    assert encoder_value.abs().max().item() == pytest.approx((6 / 128) ** 0.5, rel=0.02)
    decoder_value = host.decoder.layers[0].self_attn.v_proj.weight
    assert decoder_value.abs().max().item() == pytest.approx((6 / 64) ** 0.5, rel=0.02)
