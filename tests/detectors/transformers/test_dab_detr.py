"""DAB-DETR against the forward of transformers. Shared tests are in test_single_level.py."""

import pytest
import torch
from safetensors.torch import load_model, save_model

from detdistill.errors import UserError
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
    detector = perturb(build("dab_detr")).train(training)
    batch, targets = make_batch(96, 128), make_targets()
    expected = host_forward(detector, batch, targets, output_hidden_states=True)
    output = detector.observe(batch, targets, EVERYTHING)
    assert_same_last_stage(detector, output, expected, batch)
    for stage, host in zip(output.stages[:-1], expected.auxiliary_outputs, strict=True):
        torch.testing.assert_close(stage.logits, host["logits"], rtol=0, atol=1e-5)
        torch.testing.assert_close(to_relative(stage.boxes, batch.sizes), host["pred_boxes"], rtol=0, atol=1e-5)
    assert_same_losses(detector, output, batch, targets)
    torch.testing.assert_close(sum(output.losses.values()), expected.loss, rtol=1e-5, atol=1e-5)


def test_gradients_equal_the_hosts():
    detector = perturb(build("dab_detr", auxiliary_loss=False)).eval()
    assert_same_gradients(detector, make_batch(), make_targets())


def test_the_shared_box_head_stays_shared_after_loading(tmp_path):
    detector, loaded = perturb(build("dab_detr")), build("dab_detr")
    save_model(detector, str(tmp_path / "model.safetensors"))
    assert load_model(loaded, tmp_path / "model.safetensors") == (set(), [])
    for each in (detector, loaded):
        decoder_head = each.model.model.decoder.bbox_embed
        pairs = zip(each.model.bbox_predictor.parameters(), decoder_head.parameters(), strict=True)
        assert all(first is second for first, second in pairs)
    for name, value in detector.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_a_reference_is_a_box_of_the_padded_batch():
    detector = build("dab_detr").eval()  # before training, its boxes equal the reference
    batch = make_batch(96, 128)
    queries = detector.observe(batch, need=EVERYTHING).queries
    pixels = torch.tensor([[8.0, 12.0, 40.0, 44.0]]).expand(2, 1, 4)  # inside both images
    query_set = QuerySet(reference=to_relative(pixels, torch.tensor([[96, 128], [96, 128]])))
    for stage in queries.redecode(query_set):
        torch.testing.assert_close(stage.boxes, pixels, rtol=0, atol=1e-2)
    centers = queries.own.reference[1, :, :2] * torch.tensor([128, 96])
    assert (centers < torch.tensor([64, 48])).all()  # inside the narrow image


def test_initial_weights_are_the_published_ones():
    detector = build("dab_detr").eval()
    host = detector.model.model
    scores = detector.observe(make_batch(), need=EVERYTHING).stages[-1].scores()
    assert scores.mean().item() == pytest.approx(0.01, abs=0.005)
    assert host.query_refpoint_embeddings.weight.std().item() == pytest.approx(1, abs=0.2)
    value = host.decoder.layers[0].self_attn.self_attn_value_proj.weight
    assert value.abs().max().item() == pytest.approx((6 / 64) ** 0.5, rel=0.02)
    uniform = build("dab_detr", random_refpoints_xy=True).model.model.query_refpoint_embeddings.weight[:, :2].sigmoid()
    assert uniform.std().item() == pytest.approx(12**-0.5, abs=0.05)


def test_pattern_embeddings_are_refused():
    with pytest.raises(UserError, match="num_patterns 3"):
        build("dab_detr", num_patterns=3)
