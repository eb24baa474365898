"""RT-DETR's and RT-DETRv2's losses and stages against transformers' own; what they share with D-FINE is in test_hybrid."""

import pytest
import torch

from detdistill.detectors.queries.frames import to_relative
from detdistill.errors import UserError
from tests.detectors.builders import make_batch, make_targets
from tests.detectors.hybrid import CLOSE, NAMES, build, frame_of, host_forward, observe, same_gradients, stir

both_versions = pytest.mark.parametrize("kind", ["rt_detr", "rt_detr_v2"])


@both_versions
@pytest.mark.parametrize("training", [False, True])
def test_losses_and_every_stage_equal_the_hosts(kind: str, training: bool):
    detector, batch, targets = stir(build(kind)).train(training), make_batch(), make_targets()
    expected = host_forward(detector, batch, targets)
    output = observe(detector, batch, targets)
    torch.testing.assert_close(sum(output.losses.values()), expected.loss, **CLOSE)
    for name, value in output.losses.items():
        plain, _, part = name.partition("_")
        part = {"": "", "encoder": "_aux_2"}.get(
            part, f"_dn_{part.removeprefix('denoising_')}" if "denoising" in part else f"_aux_{part}"
        )
        torch.testing.assert_close(value, expected.loss_dict[NAMES[plain] + part], **CLOSE)
    assert len(output.losses) == len(expected.loss_dict) == 3 * (7 if training else 4)
    noisy = expected.intermediate_logits.shape[2] - 12
    assert noisy == (12 if training else 0)  # 2 objects x 3 groups x (positive, negative)
    for index, stage in enumerate(output.stages):
        torch.testing.assert_close(stage.logits, expected.intermediate_logits[:, index, noisy:], **CLOSE)
        boxes = to_relative(stage.boxes, frame_of(batch))
        torch.testing.assert_close(boxes, expected.intermediate_reference_points[:, index, noisy:], **CLOSE)
        torch.testing.assert_close(stage.embeddings, expected.intermediate_hidden_states[:, index, noisy:], **CLOSE)


@both_versions
@pytest.mark.parametrize("training", [False, True])
def test_gradients_equal_the_hosts(kind: str, training: bool):
    detector = stir(build(kind)).train(training)
    if not training:  # then nothing is denoised
        detector.model.model.denoising_class_embed.requires_grad_(False)
    same_gradients(detector, make_batch(), make_targets())


def test_a_decoder_of_one_layer_is_refused_where_the_host_has_none():
    assert len(observe(build("rt_detr", decoder_layers=1).eval(), make_batch()).stages) == 1
    for kind in ("rt_detr_v2", "d_fine"):
        with pytest.raises(UserError, match="at least 2 decoder layers"):
            build(kind, decoder_layers=1)
