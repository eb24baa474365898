"""DETR against the forward of transformers. Shared tests are in test_single_level.py."""

import pytest
import torch
from transformers.models.detr.image_processing_detr import DetrImageProcessor

from detdistill.detectors.transformers import detr as module
from detdistill.types import Need
from tests.detectors.builders import make_batch, make_targets
from tests.detectors.transformers.single_level import (
    build,
    host_forward,
    host_logits,
    perturb,
)


def test_the_last_column_is_no_object():
    detector = perturb(build("detr"))
    with torch.no_grad():
        detector.model.class_labels_classifier.bias[-1] = 50.0
    stage = detector.observe(make_batch(), need=Need(predictions=True)).stages[-1]
    assert stage.background.min() > 40
    assert stage.logits.max() < 40
    assert stage.scores().max() < 1e-9


def test_the_class_loss_is_a_weighted_mean_over_all_processes(monkeypatch: pytest.MonkeyPatch):
    detector, targets = perturb(build("detr")), make_targets()
    output = detector.observe(make_batch(), targets)
    stage = output.stages[-1]
    cross_entropies = -host_logits(stage).detach().log_softmax(-1)
    total = weight = 0.0
    for matched, labels, image in zip(stage.assignment.matched, targets.labels, cross_entropies, strict=True):
        for match, cross_entropy in zip(matched.tolist(), image, strict=True):
            total += float(cross_entropy[labels[match]] if match >= 0 else 0.1 * cross_entropy[-1])
            weight += 1.0 if match >= 0 else 0.1
    assert output.losses["classification"].item() == pytest.approx(total / weight, rel=1e-4)
    # As if a second process had three times the weight.
    monkeypatch.setattr(module, "mean_over_processes", lambda weight, floor: 2 * weight)
    losses = detector.observe(make_batch(), targets).losses
    for name, value in output.losses.items():
        torch.testing.assert_close(losses[name], value / 2 if name.startswith("classification") else value)


def test_detections_equal_the_published_post_processing():
    detector, batch = perturb(build("detr")).eval(), make_batch(96, 128)
    with torch.no_grad():
        raw = host_forward(detector, batch, make_targets())
    published = DetrImageProcessor().post_process_object_detection(raw, threshold=0.0, target_sizes=batch.sizes)
    detector.detections = 20
    for detections, host, (height, width) in zip(detector.detect(batch), published, batch.sizes.tolist(), strict=True):
        scores, order = host["scores"].sort(descending=True)
        limit = torch.tensor([width, height, width, height])
        torch.testing.assert_close(detections.scores, scores, rtol=0, atol=1e-5)
        host_boxes = host["boxes"][order].clamp(min=0).minimum(limit)
        torch.testing.assert_close(detections.boxes, host_boxes, rtol=0, atol=1e-2)
        assert torch.equal(detections.labels, host["labels"][order])


def test_initial_weights_are_the_published_ones():
    detector = build("detr")
    host = detector.model.model
    assert host.query_position_embeddings.weight.std().item() == pytest.approx(1, abs=0.1)
    for attention in (
        host.encoder.layers[0].self_attn,
        host.decoder.layers[1].self_attn,
        host.decoder.layers[1].encoder_attn,
    ):
        for part in (
            attention.q_proj,
            attention.k_proj,
            attention.v_proj,
        ):  # initialized as rows of one (96, 32) matrix
            assert part.weight.abs().max().item() == pytest.approx((6 / 128) ** 0.5, rel=0.02)
        assert attention.o_proj.weight.abs().max().item() == pytest.approx((6 / 64) ** 0.5, rel=0.02)
    assert detector.model.class_labels_classifier.weight.abs().max() > 0.15  # torch's default, up to 32 ** -0.5
