"""Conditional DETR against the forward of transformers. Shared tests are in test_single_level.py."""

import pytest
import torch

from detdistill.geometry import to_relative
from detdistill.types import QuerySet
from tests.detectors.builders import make_batch
from tests.detectors.transformers.single_level import (
    EVERYTHING,
    build,
)


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
