"""Losses and stages of RT-DETR and RT-DETRv2 against transformers. Shared tests are in test_hybrid.py."""

import pytest
import torch

from detdistill.errors import UserError
from detdistill.geometry import to_relative
from tests.detectors.builders import make_batch, make_targets
from tests.detectors.transformers.hybrid import (
    CLOSE,
    NAMES,
    assert_same_gradients,
    build,
    frame_of,
    host_forward,
    observe,
    perturb,
)

both_versions = pytest.mark.parametrize("kind", ["rt_detr", "rt_detr_v2"])


def host_suffix(suffix: str) -> str:
    """The host's suffix of a loss term, from ours without the first underscore."""
    if suffix == "":
        return ""
    if suffix == "encoder":
        return "_aux_2"
    return f"_dn_{suffix.removeprefix('denoising_')}" if "denoising" in suffix else f"_aux_{suffix}"


@both_versions
@pytest.mark.parametrize("training", [False, True])
def test_losses_and_every_stage_equal_the_hosts(kind: str, training: bool):
    detector, batch, targets = perturb(build(kind)).train(training), make_batch(), make_targets()
    expected = host_forward(detector, batch, targets)
    output = observe(detector, batch, targets)
    torch.testing.assert_close(sum(output.losses.values()), expected.loss, **CLOSE)
    for name, value in output.losses.items():
        plain, _, suffix = name.partition("_")
        torch.testing.assert_close(value, expected.loss_dict[NAMES[plain] + host_suffix(suffix)], **CLOSE)
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
    detector = perturb(build(kind)).train(training)
    if not training:  # there are no denoising queries in eval mode, so this embedding gets no gradient
        detector.model.model.denoising_class_embed.requires_grad_(False)
    assert_same_gradients(detector, make_batch(), make_targets())


def test_a_decoder_of_one_layer_is_refused_if_the_host_can_not_build_it():
    assert len(observe(build("rt_detr", decoder_layers=1).eval(), make_batch()).stages) == 1
    for kind in ("rt_detr_v2", "d_fine"):
        with pytest.raises(UserError, match="at least 2 decoder layers"):
            build(kind, decoder_layers=1)
