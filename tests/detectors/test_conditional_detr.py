"""Conditional DETR's adapter against transformers' own forward; what it shares with its kin is in test_single_level.py."""

import pytest
import torch
from transformers.models.conditional_detr.image_processing_conditional_detr import ConditionalDetrImageProcessor

from detdistill.detectors.queries.frames import to_relative
from detdistill.types import QuerySet
from tests.detectors.builders import make_batch, make_targets
from tests.detectors.single_level import (
    EVERYTHING,
    build,
    host_forward,
    same_gradients,
    same_last_stage,
    same_losses,
    stir,
)


@pytest.mark.parametrize("training", [False, True])
def test_boxes_maps_and_losses_equal_the_hosts(training: bool):
    detector = stir(build("conditional_detr")).train(training)
    batch, targets = make_batch(96, 128), make_targets()
    expected = host_forward(detector, batch, targets, output_hidden_states=True)
    output = detector.observe(batch, targets, EVERYTHING)
    same_last_stage(detector, output, expected, batch)
    norm = detector.model.model.decoder.layernorm
    for stage, state in zip(
        output.stages[:-1], expected.decoder_hidden_states[1:-1], strict=True
    ):  # the first is what went in
        torch.testing.assert_close(stage.embeddings, norm(state), rtol=0, atol=1e-5)
    same_losses(detector, output, batch, targets)
    torch.testing.assert_close(sum(output.losses[name] for name in ("classification", "box", "giou")), expected.loss)


def test_gradients_equal_the_hosts():
    same_gradients(stir(build("conditional_detr")).eval(), make_batch(), make_targets())


def test_auxiliary_losses_do_not_change_what_is_said():
    """In the host they do."""
    detector, batch = stir(build("conditional_detr")).eval(), make_batch()
    plain, theirs = (
        detector.observe(batch, need=EVERYTHING).stages,
        host_forward(detector, batch, make_targets()).logits,
    )
    detector.model.config.auxiliary_loss = True
    for before, after in zip(plain, detector.observe(batch, need=EVERYTHING).stages, strict=True):
        assert torch.equal(before.logits, after.logits)
    assert (host_forward(detector, batch, make_targets()).logits - theirs).abs().max() > 0.01


def test_reference_points_are_the_detectors_own_of_any_position():
    detector = build("conditional_detr").eval()  # whose box head says at first: the point, and half the sides
    batch = make_batch()
    queries = detector.observe(batch, need=EVERYTHING).queries
    position = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(3))
    points = detector.model.model.decoder.ref_point_head(position).sigmoid()
    for given in (QuerySet(position=position), QuerySet(position=position, reference=torch.rand(2, 7, 2))):
        boxes = to_relative(queries.redecode(given)[-1].boxes, batch.sizes)
        torch.testing.assert_close(boxes[..., :2], points, rtol=0, atol=1e-5)
        torch.testing.assert_close(boxes[..., 2:], torch.full((2, 7, 2), 0.5), rtol=0, atol=1e-5)


def test_detections_equal_the_published_post_processing():
    detector, batch = stir(build("conditional_detr")).eval(), make_batch(96, 128)
    with torch.no_grad():
        raw = host_forward(detector, batch, make_targets())
    published = ConditionalDetrImageProcessor().post_process_object_detection(
        raw, threshold=0.0, target_sizes=batch.sizes, top_k=60
    )
    detector.detections = 60  # of 20 queries x 3 classes: all
    for mine, host, (height, width) in zip(detector.detect(batch), published, batch.sizes.tolist(), strict=True):
        limit = torch.tensor([width, height, width, height])
        torch.testing.assert_close(mine.scores, host["scores"], rtol=0, atol=1e-5)
        torch.testing.assert_close(mine.boxes, host["boxes"].clamp(min=0).minimum(limit), rtol=0, atol=1e-2)
        assert torch.equal(mine.labels, host["labels"])


def test_the_start_is_the_published_one():
    detector = build("conditional_detr").eval()
    host = detector.model.model
    assert detector.observe(make_batch(), need=EVERYTHING).stages[-1].scores().mean().item() == pytest.approx(
        0.01, abs=0.005
    )
    assert host.query_position_embeddings.weight.std().item() == pytest.approx(1, abs=0.1)
    assert host.encoder.layers[0].self_attn.v_proj.weight.abs().max().item() == pytest.approx(
        (6 / 128) ** 0.5, rel=0.02
    )
    assert host.decoder.layers[0].self_attn.v_proj.weight.abs().max().item() == pytest.approx((6 / 64) ** 0.5, rel=0.02)
